"""Batches become a trained network and its figures. Knows neither Ray nor MLflow."""
