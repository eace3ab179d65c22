"""Questions about a graph: pure functions of a model that edit nothing."""
