"""blockprune: blocks, heads and FFN nodes whose scores say in training that they may go."""
