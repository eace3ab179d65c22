"""Structured pruning: blocks, what samples say of their units, the plan, the refit and the physical cut."""
