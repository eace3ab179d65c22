"""How int8 sees and rewrites a graph: what may be quantised, how it is stored, how it is written."""
