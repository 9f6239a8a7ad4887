-- A preview that nobody saved is given back: its voice counts against what the provider keeps for the account.
--
-- When that may happen stands with the purchase of a preview alone; a saved one has none. The check is proved in the
-- next file, beside those who write.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.purchases ADD COLUMN IF NOT EXISTS give_back_at timestamptz;
ALTER TABLE internal.purchases DROP CONSTRAINT IF EXISTS purchases_state_check;
ALTER TABLE internal.purchases ADD CONSTRAINT purchases_state_check
    CHECK (state IN ('calling', 'done', 'refused', 'unknown', 'given_back')) NOT VALID;
