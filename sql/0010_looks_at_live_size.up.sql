-- without a transaction
-- What an object, a provider's voice and a job are looked up by: without these, one deletion read a million generations.
-- One index at a time, beside those who write; `migrate` says how far each is, and begins again what was broken off.

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_generations_audio_object_key
    ON public.generations (audio_object_key) WHERE audio_object_key IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_voices_reference_object_key
    ON public.voices (reference_object_key) WHERE reference_object_key IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_voices_provider_voice_id
    ON public.voices (provider_voice_id) WHERE provider_voice_id IS NOT NULL;
-- The order in which the history is read, page after page.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_generations_user_created_id
    ON public.generations (user_id, created_at DESC, id DESC);
-- What is left active by an older system is looked for every minute.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_tasks_active_updated_at
    ON public.tasks (updated_at) WHERE status IN ('pending', 'processing');
CREATE INDEX CONCURRENTLY IF NOT EXISTS purchases_voice_idx
    ON internal.purchases ((outcome ->> 'voice')) WHERE state = 'done' AND outcome ? 'voice';
