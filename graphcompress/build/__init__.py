"""One request becomes an artifact: what is written, and what says how it was made."""
