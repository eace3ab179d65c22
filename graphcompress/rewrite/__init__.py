"""The one way to edit a graph, and how the expressions of weights are written."""
