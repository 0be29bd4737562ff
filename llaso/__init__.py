"""Holds the `llaso` command and what it runs: the quickstart, training, serving, the demo and publishing."""
