-- When each word of a speech is heard, where its lane says so: a row for each batch that the provider told, in order.
--
-- Words are as long as the text itself, so they have a table of their own: nobody who lists a history reads them.

SET LOCAL lock_timeout = '3s';

CREATE TABLE IF NOT EXISTS internal.words (
    generation_id uuid NOT NULL REFERENCES public.generations (id) ON DELETE CASCADE,
    position int NOT NULL,
    words jsonb NOT NULL,
    PRIMARY KEY (generation_id, position)
);
