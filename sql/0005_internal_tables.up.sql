-- What only this server reads and writes: who is speaking, the audio of speeches that are not stored yet, what was
-- bought, which requests were answered, which objects must go. In a schema of their own, because `public` may be
-- served over an HTTP API.

SET LOCAL lock_timeout = '3s';

-- One row per speech, from the request until its audio is published. Updated several times a second while it speaks:
-- narrow, and half of every page is left free for the next version of a row.
CREATE TABLE internal.runs (
    task_id uuid PRIMARY KEY,
    generation_id uuid,                                 -- none for a design preview
    job_name text NOT NULL,
    attempt integer NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    owner uuid,                                         -- the process that speaks it, one uuid per start
    state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'speaking', 'spoken', 'unstored')),
    byte_length bigint NOT NULL DEFAULT 0 CHECK (byte_length >= 0),     -- durable payload bytes of this attempt
    sample_rate_hz integer NOT NULL DEFAULT 24000 CHECK (sample_rate_hz > 0),
    object_key text,
    created_at timestamptz NOT NULL DEFAULT now(),
    spoken_at timestamptz,
    beat_at timestamptz NOT NULL DEFAULT now(),         -- when its owner last said that it lives
    -- Nobody heard anything of a speech that may be spoken (again).
    CONSTRAINT runs_queued_is_silent_check CHECK (state <> 'queued' OR byte_length = 0),
    CONSTRAINT runs_spoken_has_audio_check CHECK (state NOT IN ('spoken', 'unstored') OR byte_length > 0)
) WITH (fillfactor = 50);

CREATE INDEX runs_state_beat_at_idx ON internal.runs (state, beat_at);
CREATE INDEX runs_generation_id_idx ON internal.runs (generation_id);

-- The durable copy of growing audio. No foreign key: it would lock the run's row once per slice.
CREATE TABLE internal.spool (
    task_id uuid,
    attempt integer,
    byte_offset bigint CHECK (byte_offset >= 0),        -- payload bytes before this slice
    bytes bytea NOT NULL,
    PRIMARY KEY (task_id, attempt, byte_offset)
) WITH (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02);

-- MP3 does not compress, and trying to costs more than writing it.
ALTER TABLE internal.spool ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- Everything that costs money and is not a stream, claimed before the call leaves.
CREATE TABLE internal.purchases (
    subject uuid,
    part integer DEFAULT 0,
    kind text NOT NULL,
    user_id uuid NOT NULL,
    state text NOT NULL CHECK (state IN ('calling', 'done', 'refused', 'unknown')),
    attempt integer NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    lease_until timestamptz NOT NULL,
    provider_name text,                                 -- by which a repeated call finds what the first one made
    request_id text,
    outcome jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subject, part)
);

CREATE INDEX purchases_undecided_idx ON internal.purchases (lease_until) WHERE state IN ('calling', 'unknown');

-- Which request made which task: a repeated one gets the first one's answer.
CREATE TABLE internal.idempotency (
    user_id uuid,
    key text,
    request_hash bytea NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, key)
);

CREATE INDEX idempotency_created_at_idx ON internal.idempotency (created_at);

-- Objects that must go. The row leaves when the object is gone.
CREATE TABLE internal.removals (
    bucket text,
    object_key text,
    reason text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (bucket, object_key)
);
