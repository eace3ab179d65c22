"""The physical cut of coupled dimensions, everywhere in a graph: what passes that prune share."""
