"""plain-operators: affine maps in place of normalisations, ReLU in place of GELU."""
