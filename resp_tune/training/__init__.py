"""Train one network on one split, without Ray, Optuna or MLflow."""
