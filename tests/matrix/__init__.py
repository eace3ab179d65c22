"""The support matrix: architectures × exporters × checks, measured and written to docs/support.md."""
