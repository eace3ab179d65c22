"""What every operator says about the dimensions of its operands."""
