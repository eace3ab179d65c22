"""Sums of Kronecker products: the nearest one, a fitted one, the choice among them."""
