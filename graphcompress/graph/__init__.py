"""A model: read, held, inferred, evaluated and run."""
