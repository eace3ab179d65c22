"""A narrower residual stream: turned to its principal axes or chosen by features, cut, and refitted."""
