"""What may be let in: who is ready, how many there are, and how large what they send may be."""
