-- Takes away the indexes by which objects, voices and pages are found at size.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS public.idx_generations_audio_object_key;
DROP INDEX IF EXISTS public.idx_voices_reference_object_key;
DROP INDEX IF EXISTS public.idx_voices_provider_voice_id;
DROP INDEX IF EXISTS public.idx_generations_user_created_id;
DROP INDEX IF EXISTS public.idx_tasks_active_updated_at;
DROP INDEX IF EXISTS internal.purchases_voice_idx;
