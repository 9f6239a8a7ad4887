-- ANALYZE would take 30 000 texts apart, and the planner needs no figures to choose these indexes.

SET LOCAL lock_timeout = '3s';

ALTER INDEX public.idx_generations_pieces ALTER COLUMN 1 SET STATISTICS 0;
ALTER INDEX public.idx_voices_pieces ALTER COLUMN 1 SET STATISTICS 0;
