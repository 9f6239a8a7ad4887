-- The three tables that everything stands on, created only where they are missing: a database in production has them.
--
-- Before anything else we write down what stood here before us. Columns, defaults, constraints and indexes differ from
-- one production database to the next, and the down files take away what is not in this list, and nothing else.

SET LOCAL lock_timeout = '3s';

REVOKE ALL ON SCHEMA internal FROM PUBLIC;

-- A managed platform may hand new schemas to the roles of its HTTP API by default privileges.
DO $$
DECLARE
    client_role text;
BEGIN
    FOR client_role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA internal FROM %I', client_role);
    END LOOP;
END $$;

CREATE TABLE internal.inventory (
    relation text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('table', 'column', 'constraint', 'index')),
    name text NOT NULL,
    definition text,                    -- a column's default, a constraint's or an index's definition
    PRIMARY KEY (relation, kind, name)
);

INSERT INTO internal.inventory (relation, kind, name, definition)
WITH core AS (
    SELECT c.oid, c.relname::text AS relation
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND c.relname IN ('voices', 'generations', 'tasks')
)
SELECT relation, 'table', relation, NULL
  FROM core
UNION ALL
SELECT core.relation, 'column', a.attname::text, pg_get_expr(d.adbin, d.adrelid)
  FROM core
  JOIN pg_catalog.pg_attribute a ON a.attrelid = core.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT core.relation, 'constraint', con.conname::text, pg_get_constraintdef(con.oid)
  FROM core
  JOIN pg_catalog.pg_constraint con ON con.conrelid = core.oid
UNION ALL
SELECT core.relation, 'index', i.relname::text, pg_get_indexdef(i.oid)
  FROM core
  JOIN pg_catalog.pg_index x ON x.indrelid = core.oid
  JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid;

-- Row-level security without a policy: where `public` is served over an HTTP API, these tables are nobody's but the
-- owner's. The owner, as whom this server connects, is not bound by it.
DO $$
BEGIN
    IF to_regclass('public.voices') IS NULL THEN
        CREATE TABLE public.voices (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL,
            name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
            reference_object_key text,
            reference_transcript text,
            language text NOT NULL DEFAULT 'Auto',
            source text NOT NULL CHECK (source IN ('uploaded', 'designed')),
            description text,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        CREATE INDEX idx_voices_user_id_created ON public.voices (user_id, created_at DESC);
        ALTER TABLE public.voices ENABLE ROW LEVEL SECURITY;
    END IF;

    IF to_regclass('public.generations') IS NULL THEN
        CREATE TABLE public.generations (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL,
            voice_id uuid REFERENCES public.voices (id) ON DELETE SET NULL,
            text text NOT NULL,
            audio_object_key text,
            duration_seconds double precision,
            language text NOT NULL DEFAULT 'Auto',
            status text NOT NULL DEFAULT 'pending'
                CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
            generation_time_seconds double precision,
            error_message text,
            created_at timestamptz NOT NULL DEFAULT now(),
            completed_at timestamptz
        );
        CREATE INDEX idx_generations_user_id_created ON public.generations (user_id, created_at DESC);
        CREATE INDEX idx_generations_voice_id ON public.generations (voice_id);
        ALTER TABLE public.generations ENABLE ROW LEVEL SECURITY;
    END IF;

    IF to_regclass('public.tasks') IS NULL THEN
        CREATE TABLE public.tasks (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL,
            type text NOT NULL CHECK (type IN ('generate', 'design_preview', 'clone')),
            status text NOT NULL DEFAULT 'pending'
                CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
            modal_job_id text,
            generation_id uuid REFERENCES public.generations (id) ON DELETE SET NULL,
            voice_id uuid REFERENCES public.voices (id) ON DELETE SET NULL,
            modal_poll_count integer NOT NULL DEFAULT 0,
            metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
            result jsonb,
            error text,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            completed_at timestamptz
        );
        CREATE INDEX idx_tasks_user_id ON public.tasks (user_id);
        CREATE INDEX idx_tasks_generation_id ON public.tasks (generation_id);
        CREATE INDEX idx_tasks_voice_id ON public.tasks (voice_id);
        CREATE INDEX idx_tasks_modal_job_id ON public.tasks (modal_job_id) WHERE modal_job_id IS NOT NULL;
        CREATE INDEX idx_tasks_active ON public.tasks (created_at) WHERE status IN ('pending', 'processing');
        ALTER TABLE public.tasks ENABLE ROW LEVEL SECURITY;

        CREATE FUNCTION public.tasks_touch_updated_at() RETURNS trigger
            LANGUAGE plpgsql SET search_path = ''
            AS $touch$
            BEGIN
                NEW.updated_at := now();
                RETURN NEW;
            END $touch$;
        CREATE TRIGGER set_updated_at BEFORE UPDATE ON public.tasks
            FOR EACH ROW EXECUTE FUNCTION public.tasks_touch_updated_at();
    END IF;
END $$;
