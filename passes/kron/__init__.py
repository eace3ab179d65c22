"""kron: a weight becomes a sum of Kronecker products."""
