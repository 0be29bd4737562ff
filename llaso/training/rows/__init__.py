"""Turns a corpus into batches: rows, their lengths, the plan of batches, and the encoder cache."""
