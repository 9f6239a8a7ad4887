-- A removal that cannot succeed is tried again after pauses that grow, and what reconciliation looks for has an index.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.removals ADD COLUMN IF NOT EXISTS tries integer NOT NULL DEFAULT 0;
ALTER TABLE internal.removals ADD COLUMN IF NOT EXISTS next_at timestamptz NOT NULL DEFAULT now() + interval '1 minute';
CREATE INDEX IF NOT EXISTS removals_next_at_idx ON internal.removals (next_at);
