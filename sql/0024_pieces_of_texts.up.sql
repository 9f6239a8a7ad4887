-- What a search finds a text by, in any script: each one, two and three characters that stand beside each other, in
-- small letters, and whose text it is. An index of these (the next file) answers `%words%` for one person, also where
-- words have one or two letters or none (你好, 🎉, 50%); and it needs no extension, which not every database allows.

SET LOCAL lock_timeout = '3s';

CREATE FUNCTION internal.pieces(owner uuid, words text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    SELECT array_agg(a) || array_agg(a || b) || array_agg(a || b || c) || owner::text
      FROM (SELECT string_to_array(lower(words), NULL) AS characters OFFSET 0) s,
           unnest(s.characters, s.characters[2:], s.characters[3:]) AS beside (a, b, c)
);

-- Those of them that a text must have in which `words` are found: at most eight, spread over the words.
CREATE FUNCTION internal.pieces_of_search(owner uuid, words text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    SELECT array_agg(DISTINCT substr(s.small, place, s.size)) || owner::text
      FROM (SELECT lower(words) AS small, least(3, length(lower(words))) AS size,
                   length(lower(words)) - least(3, length(lower(words))) + 1 AS places OFFSET 0) s,
           generate_series(1, s.places, (s.places + 7) / 8) AS place
);

-- Whoever writes a generation keeps its index up to date, the older system and its roles as well.
GRANT EXECUTE ON FUNCTION internal.pieces(uuid, text), internal.pieces_of_search(uuid, text) TO PUBLIC;
