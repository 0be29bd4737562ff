"""LLaSO as vLLM's Transformers backend runs it, with transcriptions and a placeholder that is safe in any vocabulary.

Imported inside vLLM only, see `vllm_plugin`. The network, the processor and their code are the checkpoint's own.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from vllm.config import SpeechToTextConfig
from vllm.inputs import TextPrompt
from vllm.model_executor.models.interfaces import SupportsTranscription
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.processor import cached_processor_from_config

from .instruction import transcription_instruction


class LoudDummyInputs(MultiModalDummyInputsBuilder):
    """Measures memory with sound: vLLM's own dummy recordings are silent, which our processor refuses."""

    def _get_dummy_audios(self, **kwargs: Any) -> list[Any]:
        return [audio + 0.1 for audio in super()._get_dummy_audios(**kwargs)]


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=MultiModalProcessingInfo, dummy_inputs=LoudDummyInputs
)
class LlasoForVllm(TransformersMultiModalForCausalLM, SupportsTranscription):
    """vLLM's class for any multimodal model of transformers, and what it lacks for LLaSO."""

    supported_languages = LANGUAGES  # any: the model is not told the language, see docs/serve.md

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.placeholder = self.config.audio_token_id
        self.configure_mm_token_handling(self.text_config.vocab_size, [self.placeholder])

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Compute logits as vLLM does; those of the placeholder, if it has any, are the least there are."""
        logits = super().compute_logits(hidden_states)
        if logits is not None and self.placeholder < logits.shape[-1]:
            logits[..., self.placeholder] = torch.finfo(logits.dtype).min
        return logits

    @classmethod
    def get_speech_to_text_config(cls, model_config: Any, task_type: str) -> SpeechToTextConfig:
        """Let vLLM cut recordings at quiet places into pieces that the encoder takes whole."""
        extractor = cached_processor_from_config(model_config).feature_extractor
        return SpeechToTextConfig(sample_rate=extractor.sampling_rate, max_audio_clip_s=extractor.chunk_length)

    @classmethod
    def get_generation_prompt(cls, stt_params: Any) -> TextPrompt:
        """Ask for a transcription as `llaso serve` does; the request's `prompt` follows the instruction as context."""
        if stt_params.task_type != "transcribe":
            raise ValueError("LLaSO transcribes; it was not trained to translate")
        processor = cached_processor_from_config(stt_params.model_config)
        instruction = transcription_instruction(processor, stt_params.request_prompt)
        message = {"role": "user", "content": [{"type": "text", "text": instruction}, {"type": "audio"}]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        return TextPrompt(prompt=prompt, multi_modal_data={"audio": stt_params.audio})
