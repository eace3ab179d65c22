"""Tensor mathematics without a graph."""
