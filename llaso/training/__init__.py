"""Both training stages: recipes, collator, sampler and the Trainer that reads them."""
