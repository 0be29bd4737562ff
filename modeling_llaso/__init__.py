"""LLaSO's model: configuration, processor, network and conversion, as they would stand in transformers.

Importing this package registers the classes with transformers' Auto classes, so that `AutoProcessor`, `AutoModel` and
`AutoModelForMultimodalLM` open LLaSO checkpoints.
"""

from .compatibility_llaso import TRIED_TRANSFORMERS

# isort: split
# After `check_transformers`: with too old a transformers, these imports would fail with an unclear message.
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoProcessor

from llaso_common import __version__
from llaso_common.audio import read_audio

from .configuration_llaso import LlasoConfig, count_audio_tokens, preset
from .modeling_llaso import LlasoForConditionalGeneration, LlasoModel
from .processing_llaso import LlasoProcessor, add_audio_tokens

LlasoProcessor.read_file = staticmethod(lambda source, rate, name: read_audio(source, rate, name=name))  # type: ignore
AutoConfig.register("llaso", LlasoConfig, exist_ok=True)
AutoProcessor.register(LlasoConfig, LlasoProcessor, exist_ok=True)
AutoModel.register(LlasoConfig, LlasoModel, exist_ok=True)
AutoModelForMultimodalLM.register(LlasoConfig, LlasoForConditionalGeneration, exist_ok=True)
AutoModelForSeq2SeqLM.register(LlasoConfig, LlasoForConditionalGeneration, exist_ok=True)

__all__ = [
    "TRIED_TRANSFORMERS",
    "LlasoConfig",
    "LlasoForConditionalGeneration",
    "LlasoModel",
    "LlasoProcessor",
    "__version__",
    "add_audio_tokens",
    "count_audio_tokens",
    "preset",
]
