-- What was given back cannot be had again: for the release before it reads as a preview that did not succeed.

SET LOCAL lock_timeout = '3s';

UPDATE internal.purchases SET state = 'refused' WHERE state = 'given_back';
ALTER TABLE internal.purchases DROP CONSTRAINT IF EXISTS purchases_state_check;
ALTER TABLE internal.purchases ADD CONSTRAINT purchases_state_check
    CHECK (state IN ('calling', 'done', 'refused', 'unknown')) NOT VALID;
ALTER TABLE internal.purchases DROP COLUMN IF EXISTS give_back_at;
