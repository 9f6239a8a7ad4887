-- The voice that each person marked as their default: it speaks where a program names none.
--
-- In a table of its own, so that "one a person" is its key, and no column of a table that others write to as well.

SET LOCAL lock_timeout = '3s';

CREATE TABLE IF NOT EXISTS internal.default_voices (
    user_id uuid PRIMARY KEY,
    voice_id uuid NOT NULL REFERENCES public.voices (id) ON DELETE CASCADE
);

CREATE INDEX IF NOT EXISTS default_voices_voice_id_idx ON internal.default_voices (voice_id);
