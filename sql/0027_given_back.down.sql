-- Attempts that sent nothing count again, as they did.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.runs DROP COLUMN IF EXISTS not_begun;
