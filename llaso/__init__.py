"""What people do with LLaSO: the `llaso` command, the quickstart, training, serving, the demo and publishing."""
