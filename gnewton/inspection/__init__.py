"""The loss around one point: a summary averaged over batches, and the rates and structure it implies."""
