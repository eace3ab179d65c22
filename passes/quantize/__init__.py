"""int8: weights and activations in eight bits."""
