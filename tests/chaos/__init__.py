"""The bad week: whole processes on real parts, killed, paused, cut off and replaced; one judge looks afterwards."""
