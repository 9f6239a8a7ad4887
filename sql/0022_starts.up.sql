-- What is needed to begin a speech stands with its run: whose turn it is, until when it may begin, and which voice of the
-- provider speaks it, so that a voice that is renewed meanwhile changes nothing that is under way.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.runs
    ADD COLUMN IF NOT EXISTS user_id uuid,
    ADD COLUMN IF NOT EXISTS provider_voice_id text,
    ADD COLUMN IF NOT EXISTS model text,
    ADD COLUMN IF NOT EXISTS start_by timestamptz;

-- How many speeches a user has begun lately: it fades within a minute.
CREATE TABLE IF NOT EXISTS internal.turns (
    user_id uuid PRIMARY KEY,
    starts double precision NOT NULL,
    counted_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
