"""From a corpus to batches: rows, their lengths, the plan of batches, and the encoder cache."""
