-- Takes away the indexes by which searches and narrowed pages are read.

SET LOCAL lock_timeout = '3s';

DROP INDEX IF EXISTS public.idx_generations_pieces;
DROP INDEX IF EXISTS public.idx_generations_user_status_created_id;
DROP INDEX IF EXISTS public.idx_generations_voice_created_id;
DROP INDEX IF EXISTS public.idx_voices_pieces;
DROP INDEX IF EXISTS public.idx_voices_user_lower_name;
