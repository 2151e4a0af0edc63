"""From a configuration to a run: typed schemas, checks, the run folder, and ``run(settings)``."""
