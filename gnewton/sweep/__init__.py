"""Many runs: jobs in processes of their own, a manifest of how they ended, launchers that start them."""
