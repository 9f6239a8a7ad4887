-- Takes away the shared pace; each process counts its own starts again. Nothing is lost.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.pace;
