-- Takes away the indexes that reconciliation reads.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS public.idx_voices_previous;
DROP INDEX IF EXISTS internal.purchases_doubtful_clones_idx;
