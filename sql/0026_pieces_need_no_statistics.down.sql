-- Figures as everywhere; the indexes themselves go with the file before.

SET LOCAL lock_timeout = '3s';

ALTER INDEX IF EXISTS public.idx_generations_pieces ALTER COLUMN 1 SET STATISTICS -1;
ALTER INDEX IF EXISTS public.idx_voices_pieces ALTER COLUMN 1 SET STATISTICS -1;
