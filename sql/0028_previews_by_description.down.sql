-- Takes away the index by which a preview is found by its description.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS internal.purchases_described_idx;
