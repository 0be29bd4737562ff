"""`make quickstart`: both corpora, both training stages, evaluation and a report on a laptop."""
