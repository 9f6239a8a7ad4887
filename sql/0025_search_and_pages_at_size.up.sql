-- without a transaction
-- What searches and narrowed pages of the history are read by, and a voice by its name: without these each of them
-- reads all that somebody has. One index at a time, beside those who write.

-- A text gets into it once, when it has ended: not while somebody waits for the first sound. What is collected for it
-- is kept short, since every search reads all of that.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_generations_pieces
    ON public.generations USING gin ((internal.pieces(user_id, text)) COLLATE "C")
    WITH (gin_pending_list_limit = 256) WHERE status IN ('completed', 'failed', 'cancelled');
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_generations_user_status_created_id
    ON public.generations (user_id, status, created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_generations_voice_created_id
    ON public.generations (voice_id, created_at DESC, id DESC) WHERE voice_id IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_voices_pieces
    ON public.voices USING gin ((internal.pieces(user_id, name)) COLLATE "C");
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_voices_user_lower_name
    ON public.voices (user_id, (lower(name))) WHERE deleted_at IS NULL;
