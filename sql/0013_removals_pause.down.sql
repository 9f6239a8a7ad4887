-- Removals are tried again at every look, as before.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS internal.removals_next_at_idx;
ALTER TABLE IF EXISTS internal.removals DROP COLUMN IF EXISTS next_at;
ALTER TABLE IF EXISTS internal.removals DROP COLUMN IF EXISTS tries;
