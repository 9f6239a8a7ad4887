-- Takes every key away: programs that use one are refused from then on, and need a new one after the next way up.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.api_keys;
