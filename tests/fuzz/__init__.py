"""Random models against the library: a generator, oracles, and a reducer of what fails."""
