"""Files of a run's working directory: checkpoints, lock, log and report."""
