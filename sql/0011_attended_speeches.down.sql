-- Speeches under way go on without anybody following them. Nothing is lost.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.attended;
