-- A speech outlives its process where its lane tells which sentence every byte belongs to: the next process speaks the
-- rest from the last mark, and appends to the same payload. So the spool belongs to the task, whoever wrote which part
-- of it, and a run that waits for its next process may have bytes.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.runs
    ADD COLUMN goes_on boolean NOT NULL DEFAULT false,              -- what it has may be appended to
    ADD COLUMN kept_bytes bigint NOT NULL DEFAULT 0,                -- of former attempts
    ADD COLUMN marked_bytes bigint NOT NULL DEFAULT 0,              -- where the last whole sentence ends
    ADD COLUMN marked_characters integer NOT NULL DEFAULT 0,        -- where it ends in the text
    ADD COLUMN paid_twice_from integer NOT NULL DEFAULT -1,         -- the sentence there was begun twice; -1: none was
    DROP CONSTRAINT runs_queued_is_silent_check,
    ADD CONSTRAINT runs_queued_is_silent_check CHECK (state <> 'queued' OR byte_length = 0 OR goes_on);

DELETE FROM internal.spool s USING internal.runs r WHERE r.task_id = s.task_id AND r.attempt <> s.attempt;
ALTER TABLE internal.spool DROP CONSTRAINT spool_pkey, ADD PRIMARY KEY (task_id, byte_offset);
