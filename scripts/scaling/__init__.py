"""What a search costs besides training, part by part, and what that makes of many GPUs."""
