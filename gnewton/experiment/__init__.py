"""From a configuration to a finished run: schemas, checks, ``prepare(config)`` and ``run(prepared)``."""
