"""Proofs that an edge bundle runs elsewhere: scripts that install what they need, and tests of them."""
