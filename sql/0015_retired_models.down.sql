-- Forgets what was seen of the provider's models; it is found out again.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.retired_models;
