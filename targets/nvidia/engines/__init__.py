"""Engines: what a vendor's compiler makes of a graph, built in a process of its own, and its log."""
