-- Takes away the columns and checks that were not here before us, and gives defaults and checks back as they were.
-- Every row stays. What only our columns knew is lost with them: a voice or task that was deleted by hiding it is
-- visible again, and a qwen voice would lose the name it was paid for under, which is why that is refused.

SET LOCAL lock_timeout = '3s';

DO $$
DECLARE
    discard boolean := coalesce(current_setting('utter.discard', true), '') = 'on';
    paid_for bigint;
BEGIN
    IF NOT discard AND NOT EXISTS (
        SELECT FROM internal.inventory i
         WHERE i.relation = 'voices' AND i.kind = 'column' AND i.name = 'provider_voice_id'
    ) THEN
        SELECT count(*) INTO paid_for FROM public.voices v
         WHERE v.tts_provider = 'qwen' AND v.provider_voice_id IS NOT NULL;
        IF paid_for > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'UT001', MESSAGE = format(
                '%s voice(s) that were paid for at the provider would lose the name they are known by there', paid_for);
        END IF;
    END IF;
END $$;

ALTER TABLE public.voices
    DROP CONSTRAINT IF EXISTS voices_tts_provider_check,
    DROP CONSTRAINT IF EXISTS voices_provider_voice_kind_check,
    DROP CONSTRAINT IF EXISTS voices_saved_preview_can_speak_check;
ALTER TABLE public.generations
    DROP CONSTRAINT IF EXISTS generations_tts_provider_check,
    DROP CONSTRAINT IF EXISTS generations_qwen_completed_has_audio_check;
ALTER TABLE public.tasks
    DROP CONSTRAINT IF EXISTS tasks_provider_check;

DO $$
DECLARE
    ours record;
    before text;
BEGIN
    FOR ours IN
        SELECT made.relation, made.name
          FROM (VALUES
            ('voices', 'tts_provider'), ('voices', 'provider_voice_id'), ('voices', 'provider_target_model'),
            ('voices', 'provider_voice_kind'), ('voices', 'provider_region'), ('voices', 'provider_request_id'),
            ('voices', 'provider_metadata'), ('voices', 'deleted_at'), ('voices', 'preview_task_id'),
            ('generations', 'tts_provider'), ('generations', 'provider_model'), ('generations', 'output_format'),
            ('generations', 'provider_metadata'),
            ('tasks', 'provider'), ('tasks', 'provider_job_id'), ('tasks', 'provider_status'),
            ('tasks', 'provider_poll_count'), ('tasks', 'cancellation_requested'), ('tasks', 'error_category'),
            ('tasks', 'deleted_at'), ('tasks', 'modal_job_id'), ('tasks', 'modal_poll_count')
          ) AS made (relation, name)
         WHERE NOT EXISTS (
            SELECT FROM internal.inventory i
             WHERE i.relation = made.relation AND i.kind = 'column' AND i.name = made.name)
           -- Where 0001 made the table, Modal's columns are its own.
           AND (made.name NOT IN ('modal_job_id', 'modal_poll_count') OR EXISTS (
            SELECT FROM internal.inventory i WHERE i.kind = 'table' AND i.name = made.relation))
    LOOP
        EXECUTE format('ALTER TABLE public.%I DROP COLUMN IF EXISTS %I', ours.relation, ours.name);
    END LOOP;

    FOR ours IN
        SELECT i.relation, i.name, i.definition FROM internal.inventory i
         WHERE i.kind = 'column' AND (i.relation, i.name) IN (
            ('voices', 'tts_provider'), ('generations', 'tts_provider'), ('tasks', 'provider'))
    LOOP
        EXECUTE format('ALTER TABLE public.%I ALTER COLUMN %I ', ours.relation, ours.name)
            || coalesce('SET DEFAULT ' || ours.definition, 'DROP DEFAULT');
    END LOOP;

    FOR ours IN
        SELECT i.relation, i.name, i.definition FROM internal.inventory i
         WHERE i.kind = 'constraint' AND i.name IN (
            'voices_tts_provider_check', 'voices_provider_voice_kind_check', 'generations_tts_provider_check',
            'tasks_provider_check')
    LOOP
        before := format(
            'ALTER TABLE public.%I ADD CONSTRAINT %I %s', ours.relation, ours.name, ours.definition);
        BEGIN
            EXECUTE before;
        EXCEPTION WHEN check_violation THEN
            -- Rows of a provider that the old check does not know. They stay.
            EXECUTE before || ' NOT VALID';
        END;
    END LOOP;
END $$;
