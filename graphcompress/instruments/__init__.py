"""The instruments that are shipped; the rest of the training knows none of them by name."""
