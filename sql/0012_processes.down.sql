-- Takes away what processes say of themselves, and finds runs by their own beats again. Nothing is lost.

SET LOCAL lock_timeout = '3s';

CREATE INDEX IF NOT EXISTS runs_state_beat_at_idx ON internal.runs (state, beat_at);
DROP INDEX IF EXISTS internal.runs_waiting_idx;
DROP INDEX IF EXISTS internal.runs_owner_idx;
DROP TABLE IF EXISTS internal.processes;
