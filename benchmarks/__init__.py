"""Measures training and generation: LLaSO against the released code's figures and against transformers' own peers."""
