-- Takes away the index by which previews that are due are found.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS internal.purchases_give_back_idx;
