-- without a transaction
-- Which previews are to be given back is looked for every minute.

CREATE INDEX CONCURRENTLY IF NOT EXISTS purchases_give_back_idx
    ON internal.purchases (give_back_at) WHERE give_back_at IS NOT NULL;
