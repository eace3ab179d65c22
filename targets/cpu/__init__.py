"""cpu: the forms, providers and promises of the CPU target."""
