"""Start, join, inspect and prepare the Ray processes and nodes that run trials."""
