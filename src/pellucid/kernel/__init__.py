"""How it runs: the scheduled program and its backends."""
