"""What training and generation cost: LLaSO against the released code's figures and against transformers' own peers."""
