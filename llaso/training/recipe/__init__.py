"""Holds the recipe's dataclasses (every setting of a run), the loader of its YAML file, and the recipes."""
