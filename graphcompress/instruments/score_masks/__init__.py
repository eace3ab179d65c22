"""score-masks: learned scores say which blocks, heads and dimensions stay (block pruning)."""
