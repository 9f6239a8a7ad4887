-- Takes away the check and the index. Nothing is lost.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS internal.purchases_designs_idx;
ALTER TABLE public.voices DROP CONSTRAINT IF EXISTS voices_qwen_can_speak_check;
