"""Trials: what to try, where to run it, when to stop. Knows Ray and Optuna."""

import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)  # our own table shows the trials
