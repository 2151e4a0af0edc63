"""Many runs, each in its own process: a manifest of the jobs and their states, and the launchers."""
