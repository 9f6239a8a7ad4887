-- Refuses while these tables hold something that was paid for and stands nowhere else.

SET LOCAL lock_timeout = '3s';

DO $$
DECLARE
    discard boolean := coalesce(current_setting('utter.discard', true), '') = 'on';
    unstored bigint;
    undecided bigint;
BEGIN
    IF NOT discard THEN
        SELECT count(*) INTO unstored FROM internal.runs r WHERE r.byte_length > 0;
        SELECT count(*) INTO undecided FROM internal.purchases p WHERE p.state IN ('calling', 'unknown');
        IF unstored > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'UT001', MESSAGE = format(
                'the audio of %s speech(es) was paid for and is not stored yet', unstored);
        END IF;
        IF undecided > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'UT001', MESSAGE = format(
                'the outcome of %s purchase(s) is not known yet, and this is their only record', undecided);
        END IF;
    END IF;
END $$;

DROP TABLE internal.removals;
DROP TABLE internal.idempotency;
DROP TABLE internal.purchases;
DROP TABLE internal.spool;
DROP TABLE internal.runs;
