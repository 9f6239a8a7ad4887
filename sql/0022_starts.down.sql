-- Runs that wait are begun by the release before as it always did; nothing is lost with these.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.turns;
ALTER TABLE internal.runs
    DROP COLUMN IF EXISTS start_by,
    DROP COLUMN IF EXISTS model,
    DROP COLUMN IF EXISTS provider_voice_id,
    DROP COLUMN IF EXISTS user_id;
