"""Passes in their order, each checked against its promise."""
