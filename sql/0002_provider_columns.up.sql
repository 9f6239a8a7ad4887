-- Who speaks: every voice, task and generation names its provider, and keeps what that provider calls it.
--
-- Production has three shapes: without these columns, with all of them, and with all of them but Modal's (dropped) and
-- checks that know only 'qwen'. So whatever is there is kept, and the checks are replaced by name. Constant defaults
-- rewrite no table; the checks are validated by the next file, which lets writers pass meanwhile. May run again: it
-- repairs a table from which somebody dropped a column later.

SET LOCAL lock_timeout = '3s';

-- The order in which a deleted voice or generation reaches the others by its foreign keys.
ALTER TABLE public.voices
    ADD COLUMN IF NOT EXISTS tts_provider text NOT NULL DEFAULT 'modal',
    ADD COLUMN IF NOT EXISTS provider_voice_id text,
    ADD COLUMN IF NOT EXISTS provider_target_model text,
    ADD COLUMN IF NOT EXISTS provider_voice_kind text,
    ADD COLUMN IF NOT EXISTS provider_region text,
    ADD COLUMN IF NOT EXISTS provider_request_id text,
    ADD COLUMN IF NOT EXISTS provider_metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    ADD COLUMN IF NOT EXISTS deleted_at timestamptz,
    ADD COLUMN IF NOT EXISTS preview_task_id uuid;      -- no reference: it outlives the task's row

ALTER TABLE public.generations
    ADD COLUMN IF NOT EXISTS tts_provider text NOT NULL DEFAULT 'modal',
    ADD COLUMN IF NOT EXISTS provider_model text,
    ADD COLUMN IF NOT EXISTS output_format text,
    ADD COLUMN IF NOT EXISTS provider_metadata jsonb NOT NULL DEFAULT '{}'::jsonb;

ALTER TABLE public.tasks
    ADD COLUMN IF NOT EXISTS modal_job_id text,
    ADD COLUMN IF NOT EXISTS modal_poll_count integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS provider text NOT NULL DEFAULT 'modal',
    ADD COLUMN IF NOT EXISTS provider_job_id text,
    ADD COLUMN IF NOT EXISTS provider_status text,
    ADD COLUMN IF NOT EXISTS provider_poll_count integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cancellation_requested boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS error_category text,
    ADD COLUMN IF NOT EXISTS deleted_at timestamptz;    -- DELETE hides a task; the row goes a day later

-- Whoever inserts without naming a provider is a writer that knows only Modal.
ALTER TABLE public.voices ALTER COLUMN tts_provider SET DEFAULT 'modal';
ALTER TABLE public.generations ALTER COLUMN tts_provider SET DEFAULT 'modal';
ALTER TABLE public.tasks ALTER COLUMN provider SET DEFAULT 'modal';

ALTER TABLE public.voices DROP CONSTRAINT IF EXISTS voices_tts_provider_check;
ALTER TABLE public.voices ADD CONSTRAINT voices_tts_provider_check
    CHECK (tts_provider IN ('modal', 'qwen')) NOT VALID;

ALTER TABLE public.voices DROP CONSTRAINT IF EXISTS voices_provider_voice_kind_check;
ALTER TABLE public.voices ADD CONSTRAINT voices_provider_voice_kind_check
    CHECK (provider_voice_kind IS NULL OR provider_voice_kind IN ('vc', 'vd')) NOT VALID;

ALTER TABLE public.generations DROP CONSTRAINT IF EXISTS generations_tts_provider_check;
ALTER TABLE public.generations ADD CONSTRAINT generations_tts_provider_check
    CHECK (tts_provider IN ('modal', 'qwen')) NOT VALID;

ALTER TABLE public.tasks DROP CONSTRAINT IF EXISTS tasks_provider_check;
ALTER TABLE public.tasks ADD CONSTRAINT tasks_provider_check
    CHECK (provider IN ('modal', 'qwen')) NOT VALID;

-- A preview that was saved is a voice that can speak. (Only we write this column; qwen voices of other writers may
-- lack what the provider calls them.)
ALTER TABLE public.voices DROP CONSTRAINT IF EXISTS voices_saved_preview_can_speak_check;
ALTER TABLE public.voices ADD CONSTRAINT voices_saved_preview_can_speak_check
    CHECK (preview_task_id IS NULL OR tts_provider <> 'qwen'
           OR (provider_voice_id IS NOT NULL AND provider_target_model IS NOT NULL)) NOT VALID;

-- What we spoke ourselves is completed exactly when it is stored. We always name the format; older rows have other
-- writers, and a check that is not validated would still refuse every later update of them (a deleted voice sets
-- theirs to null), so they are let off by their age.
ALTER TABLE public.generations DROP CONSTRAINT IF EXISTS generations_qwen_completed_has_audio_check;
DO $$
BEGIN
    EXECUTE format(
        'ALTER TABLE public.generations ADD CONSTRAINT generations_qwen_completed_has_audio_check
             CHECK (tts_provider <> ''qwen'' OR output_format IS NULL OR created_at < %L::timestamptz
                    OR (status = ''completed'') = (audio_object_key IS NOT NULL)) NOT VALID',
        now());
END $$;
