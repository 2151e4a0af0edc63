"""Is this installation sound? Checks that each answer with findings, run one after the other."""
