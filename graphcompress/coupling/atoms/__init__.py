"""Dimensions as products and concatenations of atoms, and their unification."""
