-- Speeches that last only as long as somebody follows them, and the request that each of them answers: whoever hangs up
-- wants no speech, and whoever asks again within a moment wants the same one.

SET LOCAL lock_timeout = '3s';

CREATE TABLE IF NOT EXISTS internal.attended (
    task_id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    request_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    followed_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS attended_request_idx ON internal.attended (user_id, request_hash);
