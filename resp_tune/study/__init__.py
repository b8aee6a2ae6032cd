"""Keep trials, samplers and replicates in one Optuna study, the only truth of a search."""

import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)  # our own table shows the trials
