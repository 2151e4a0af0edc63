"""The tangent engine: summaries at the cost of a few gradients, by stacked tangents of a traced program."""
