-- A valid check needs nothing undone; the file before takes the check itself away.

SET LOCAL lock_timeout = '3s';
