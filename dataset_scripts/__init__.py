"""LLaSO's corpora: sources in, typed Parquet out (Align, Instruct and Eval)."""
