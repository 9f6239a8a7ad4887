-- Tables that were here before us stay. Those we made go while they are empty, or with --discard; otherwise they stay
-- with their rows, and the next migration finds them as it would find anybody's.

SET LOCAL lock_timeout = '3s';

DO $$
DECLARE
    discard boolean := coalesce(current_setting('utter.discard', true), '') = 'on';
    ours text[] := ARRAY(
        SELECT made.name
          FROM unnest(ARRAY['tasks', 'generations', 'voices']) WITH ORDINALITY AS made (name, place)
         WHERE NOT EXISTS (SELECT FROM internal.inventory i WHERE i.kind = 'table' AND i.name = made.name)
         ORDER BY made.place);
    table_name text;
    holds_rows boolean;
BEGIN
    FOREACH table_name IN ARRAY ours LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', table_name) INTO holds_rows;
        IF holds_rows AND NOT discard THEN
            RAISE WARNING 'public.% holds rows, so the tables stay', table_name;
            RETURN;
        END IF;
    END LOOP;
    FOREACH table_name IN ARRAY ours LOOP
        EXECUTE format('DROP TABLE public.%I', table_name);
        IF table_name = 'tasks' THEN
            DROP FUNCTION public.tasks_touch_updated_at();
        END IF;
    END LOOP;
END $$;

DROP TABLE internal.inventory;
