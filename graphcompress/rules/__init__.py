"""Rewrite rules that keep a graph's function: each looks at one node and edits it, or leaves it alone."""
