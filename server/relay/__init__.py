"""A speech while it is being spoken: its audio in memory and in the spool, who speaks it, who follows it."""
