-- Takes away the indexes that were not here before us.

SET LOCAL lock_timeout = '3s';

DO $$
DECLARE
    ours text;
BEGIN
    FOR ours IN
        SELECT made.name
          FROM (VALUES
            ('voices', 'idx_voices_user_provider_created'), ('voices', 'idx_voices_user_active_provider_created'),
            ('voices', 'idx_voices_preview_task_id'), ('generations', 'idx_generations_user_provider_created'),
            ('tasks', 'idx_tasks_modal_job_id'), ('tasks', 'idx_tasks_provider_job_id'),
            ('tasks', 'idx_tasks_deleted_at')
          ) AS made (relation, name)
         WHERE NOT EXISTS (SELECT FROM internal.inventory i WHERE i.kind = 'index' AND i.name = made.name)
           -- Where 0001 made the table, this index is its own.
           AND (made.name <> 'idx_tasks_modal_job_id' OR EXISTS (
            SELECT FROM internal.inventory i WHERE i.kind = 'table' AND i.name = made.relation))
    LOOP
        EXECUTE format('DROP INDEX IF EXISTS public.%I', ours);
    END LOOP;
END $$;
