-- How fast speeches may be started. The provider's limit is the account's and counts each model by itself, so all
-- processes take their starts from one row: a throttle that one of them hears slows all.

SET LOCAL lock_timeout = '3s';

CREATE TABLE internal.pace (
    account text,                                       -- names the account without telling its key
    model text,
    rate double precision NOT NULL CHECK (rate > 0),    -- starts a minute, at the full share
    share double precision NOT NULL DEFAULT 1 CHECK (share > 0 AND share <= 1),
    tokens double precision NOT NULL,                   -- starts that may be made now
    counted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    throttled_at timestamptz,
    PRIMARY KEY (account, model)
) WITH (fillfactor = 10);
