-- without a transaction
-- What reconciliation compares the provider's list with: the voices that renewing has replaced, and doubtful clones.

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_voices_previous
    ON public.voices USING gin ((provider_metadata -> 'previous') jsonb_path_ops) WHERE provider_metadata ? 'previous';
CREATE INDEX CONCURRENTLY IF NOT EXISTS purchases_doubtful_clones_idx
    ON internal.purchases (provider_name) WHERE kind = 'clone' AND state IN ('calling', 'unknown', 'refused');
