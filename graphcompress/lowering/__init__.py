"""Rewrites that targets share: what a runtime wants of a graph, written once."""
