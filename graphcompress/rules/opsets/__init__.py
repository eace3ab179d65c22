"""A model in an older or a newer opset, and operators that one has and another has not."""
