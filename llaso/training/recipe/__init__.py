"""What one run is told: the recipe's dataclasses, the loader of its YAML file, and the recipes."""
