-- Proves the check of the file before, beside those who write.

SET LOCAL lock_timeout = '3s';

ALTER TABLE internal.purchases VALIDATE CONSTRAINT purchases_state_check;
