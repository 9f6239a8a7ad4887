-- Models and services of the provider that are gone, as one process has met it and all of them must know.
--
-- A row counts for an hour after it was last confirmed; then the provider is asked again by whoever needs it.

SET LOCAL lock_timeout = '3s';

CREATE TABLE IF NOT EXISTS internal.retired_models (
    account text NOT NULL,
    name text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL DEFAULT '',
    PRIMARY KEY (account, name)
);
