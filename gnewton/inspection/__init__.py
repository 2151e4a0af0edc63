"""The loss around one point: its summary averaged over batches, and what can be read from it."""
