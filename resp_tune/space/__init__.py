"""Read a search space from YAML and suggest trial configs from it."""
