-- Takes away the index. Nothing is lost.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS internal.purchases_of_speech_idx;
