"""simplify: the same function with fewer nodes."""
