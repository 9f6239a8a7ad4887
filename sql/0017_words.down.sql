-- Captions of what was spoken are gone; the audio stays.

SET LOCAL lock_timeout = '3s';

DROP TABLE IF EXISTS internal.words;
