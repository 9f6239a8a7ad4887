-- What each person has had spoken, by UTC day, lane and key. Deleting a speech lowers nothing: this is what was used, not
-- what is left of it.

SET LOCAL lock_timeout = '3s';

CREATE TABLE IF NOT EXISTS internal.usage (
    user_id uuid,
    day date,
    lane text,
    key_id uuid DEFAULT '00000000-0000-0000-0000-000000000000',        -- all zeros: signed in without a key
    characters bigint NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    starts bigint NOT NULL DEFAULT 0,
    minute timestamptz NOT NULL DEFAULT date_trunc('minute', now()),
    minute_starts integer NOT NULL DEFAULT 0,                           -- of `starts`, those within `minute`
    PRIMARY KEY (user_id, day, lane, key_id)
);
