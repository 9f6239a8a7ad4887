-- Housekeeping looks every minute for purchases of speech that are old enough to go; it must not read all of them.

SET LOCAL lock_timeout = '3s';

CREATE INDEX IF NOT EXISTS purchases_of_speech_idx
    ON internal.purchases (updated_at) WHERE kind IN ('http', 'modal');
