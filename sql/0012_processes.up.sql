-- Which processes live: one row each, written once a second whether it holds runs or not. Whoever is silent while
-- others speak is dead; where all were silent, the database was away and nobody is judged at once.

SET LOCAL lock_timeout = '3s';

CREATE TABLE internal.processes (
    owner uuid PRIMARY KEY,                             -- one uuid per process start
    beat_at timestamptz NOT NULL,
    quiet_until timestamptz                             -- until then nobody's silence proves anything
) WITH (fillfactor = 50);

-- The runs of a dead process are found by its name. What changes with every tick of a speech stands in no index, so
-- that an update stays within its page however often it comes.
CREATE INDEX runs_owner_idx ON internal.runs (owner) WHERE owner IS NOT NULL;
CREATE INDEX runs_waiting_idx ON internal.runs (state, created_at) WHERE state <> 'speaking';
DROP INDEX internal.runs_state_beat_at_idx;
