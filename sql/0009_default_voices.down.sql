-- Forgets which voices were marked. The voices stay.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.default_voices;
