"""Trains both stages: recipes, rows and batches, the run itself, its cost, and the paper's experiments."""
