-- A qwen voice that cannot speak was paid for in vain: from now on each has what the provider knows it by.
--
-- Voices of other writers may lack it, and a check that is not validated would still refuse every later update of them
-- (deleting one hides it by an update), so older ones are let off by their age.

SET LOCAL lock_timeout = '3s';

ALTER TABLE public.voices DROP CONSTRAINT IF EXISTS voices_qwen_can_speak_check;
DO $$
BEGIN
    EXECUTE format(
        'ALTER TABLE public.voices ADD CONSTRAINT voices_qwen_can_speak_check
             CHECK (tts_provider <> ''qwen'' OR created_at < %L::timestamptz
                    OR (provider_voice_id IS NOT NULL AND provider_target_model IS NOT NULL)) NOT VALID',
        now());
END $$;

-- What a form without the preview's id is matched by: its user's finished previews, newest first.
CREATE INDEX IF NOT EXISTS purchases_designs_idx
    ON internal.purchases (user_id, updated_at DESC) WHERE kind = 'design' AND state = 'done';
