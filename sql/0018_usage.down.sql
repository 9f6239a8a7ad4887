-- Forgets what was used. The speeches stay.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.usage;
