-- Keys that people make for their programs. What is stored is the hash alone: whoever reads this table has no key.
--
-- Where the users are in this database, a key goes with its user, exactly as their generations do. Who may not refer to
-- that table gets the keys without it, and a warning.

SET LOCAL lock_timeout = '3s';

CREATE TABLE IF NOT EXISTS internal.api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    prefix text NOT NULL,                               -- what a key begins with, so that its owner knows it again
    key_hash bytea NOT NULL CHECK (octet_length(key_hash) = 32),        -- SHA-256
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    expires_at timestamptz,
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash)
);

CREATE INDEX IF NOT EXISTS api_keys_user_id_idx ON internal.api_keys (user_id, created_at DESC);

DO $$
DECLARE
    users regclass;
    rule text;
BEGIN
    SELECT con.confrelid, pg_get_constraintdef(con.oid)
      INTO users, rule
      FROM pg_catalog.pg_constraint con
      JOIN pg_catalog.pg_attribute a ON a.attrelid = con.conrelid AND a.attnum = con.conkey[1]
     WHERE con.conrelid = to_regclass('public.generations') AND con.contype = 'f'
       AND cardinality(con.conkey) = 1 AND a.attname = 'user_id'
     LIMIT 1;
    IF rule IS NULL THEN
        RETURN;
    END IF;
    IF NOT has_table_privilege(users, 'REFERENCES') THEN
        RAISE WARNING 'the keys of a user who leaves will stay: this role may not refer to %', users;
        RETURN;
    END IF;
    ALTER TABLE internal.api_keys DROP CONSTRAINT IF EXISTS api_keys_user_id_fkey;
    EXECUTE format('ALTER TABLE internal.api_keys ADD CONSTRAINT api_keys_user_id_fkey %s', rule);
END $$;
