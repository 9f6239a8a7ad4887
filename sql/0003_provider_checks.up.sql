-- Reads every row once to validate the checks of 0002, in a transaction of its own, so that nobody waits for it.

SET LOCAL lock_timeout = '3s';

ALTER TABLE public.voices VALIDATE CONSTRAINT voices_tts_provider_check;
ALTER TABLE public.voices VALIDATE CONSTRAINT voices_provider_voice_kind_check;
ALTER TABLE public.generations VALIDATE CONSTRAINT generations_tts_provider_check;
ALTER TABLE public.tasks VALIDATE CONSTRAINT tasks_provider_check;
