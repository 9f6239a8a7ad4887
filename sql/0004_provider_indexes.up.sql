-- What the voice list, the history, the Modal watcher and the clean-up look rows up by.
--
-- Not CONCURRENTLY, which cannot run in a transaction and waits for every other one: who has a large table creates the
-- index of the same name beforehand, and this file finds it. In a file apart from the columns, so that reading goes on.

SET LOCAL lock_timeout = '3s';

CREATE INDEX IF NOT EXISTS idx_voices_user_provider_created
    ON public.voices (user_id, tts_provider, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_voices_user_active_provider_created
    ON public.voices (user_id, tts_provider, created_at DESC) WHERE deleted_at IS NULL;
-- One preview is saved once.
CREATE UNIQUE INDEX IF NOT EXISTS idx_voices_preview_task_id
    ON public.voices (preview_task_id);
CREATE INDEX IF NOT EXISTS idx_generations_user_provider_created
    ON public.generations (user_id, tts_provider, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_tasks_modal_job_id
    ON public.tasks (modal_job_id) WHERE modal_job_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS idx_tasks_provider_job_id
    ON public.tasks (provider_job_id) WHERE provider_job_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS idx_tasks_deleted_at
    ON public.tasks (deleted_at) WHERE deleted_at IS NOT NULL;
