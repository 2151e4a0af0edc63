"""Training: the loop, its clocks, its CSV logs and its checkpoints."""
