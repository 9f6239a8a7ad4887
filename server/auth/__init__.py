"""Who asks: tokens, keys, and what was found out about them lately."""
