-- A run that was given back before its text was sent was no attempt: a deploy that comes while a text waits for its
-- provider must not use up what is allowed for processes that die of it.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.runs ADD COLUMN IF NOT EXISTS not_begun integer NOT NULL DEFAULT 0;
