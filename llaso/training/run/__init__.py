"""One training run: the trainer, checkpoints, resume, history and callbacks."""
