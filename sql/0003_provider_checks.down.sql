-- A valid check needs nothing undone; 0002 takes the checks themselves away.

SET LOCAL lock_timeout = '3s';
