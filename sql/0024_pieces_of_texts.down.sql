-- Takes away what a search's index is made of.

SET LOCAL lock_timeout = '3s';

DROP FUNCTION internal.pieces_of_search(uuid, text);
DROP FUNCTION internal.pieces(uuid, text);
