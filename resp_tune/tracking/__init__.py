"""MLflow: a search as a parent run with its trials below, the winner in the model registry."""
