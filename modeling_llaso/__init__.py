"""LLaSO's model: configuration, processor, network, training and the `llaso` command.

Importing this package registers the classes with transformers' Auto classes, so that
`AutoProcessor`, `AutoModel` and `AutoModelForMultimodalLM` open LLaSO checkpoints.
"""

__version__ = "0.1.0"
