"""Run trials with Ray Tune: searcher, schedulers, trainable."""
