"""LLaSO's model: configuration, processor, network, training and the `llaso` command.

Importing this package registers the classes with transformers' Auto classes, so that `AutoProcessor`, `AutoModel`
and `AutoModelForMultimodalLM` open LLaSO checkpoints. It imports neither torch nor transformers itself: each class
registers when the Auto class it belongs to is first imported, and the names below are imported when first used.
"""

from importlib import import_module

from llaso_common import __version__

from .registration import register_on_import

_PUBLIC = {
    "LlasoConfig": "configuration_llaso",
    "preset": "configuration_llaso",
    "count_audio_tokens": "configuration_llaso",
    "LlasoModel": "modeling_llaso",
    "LlasoForConditionalGeneration": "modeling_llaso",
    "LlasoProcessor": "processing_llaso",
    "add_audio_tokens": "processing_llaso",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_on_import()
