-- without a transaction
-- Saving a preview looks for the newest one of exactly this description: without this, all that its user ever had made.

CREATE INDEX CONCURRENTLY IF NOT EXISTS purchases_described_idx
    ON internal.purchases (user_id, md5(outcome ->> 'instruct'), updated_at DESC)
    WHERE kind = 'design' AND state = 'done';
