-- What waits to be gone on with fails with words: nobody is its owner, and the sweep of the older release ends it.

SET LOCAL lock_timeout = '3s';

UPDATE internal.runs SET state = 'speaking', owner = gen_random_uuid(), beat_at = now() - interval '1 hour'
 WHERE state = 'queued' AND byte_length > 0;
UPDATE internal.spool s SET attempt = r.attempt FROM internal.runs r WHERE r.task_id = s.task_id;

ALTER TABLE internal.spool DROP CONSTRAINT spool_pkey, ADD PRIMARY KEY (task_id, attempt, byte_offset);

ALTER TABLE internal.runs
    DROP CONSTRAINT runs_queued_is_silent_check,
    DROP COLUMN goes_on,
    DROP COLUMN kept_bytes,
    DROP COLUMN marked_bytes,
    DROP COLUMN marked_characters,
    DROP COLUMN paid_twice_from,
    ADD CONSTRAINT runs_queued_is_silent_check CHECK (state <> 'queued' OR byte_length = 0);
