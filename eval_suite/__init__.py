"""LLaSO-Eval: generate predictions, score them under a stated protocol, compare and report."""
