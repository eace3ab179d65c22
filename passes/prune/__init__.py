"""prune: heads and FFN nodes are ranked, cut out, and made good."""
