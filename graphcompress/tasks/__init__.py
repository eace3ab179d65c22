"""The tasks: one file each, named like the pipeline of Hugging Face, with its metrics."""
