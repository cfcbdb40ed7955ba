"""A run on disk: its directory, lock, logs, checkpoints and train state."""
