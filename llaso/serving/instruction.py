"""Writes what a transcription request asks the model, for our server and for vLLM's."""

from __future__ import annotations

from typing import Any


def transcription_instruction(processor: Any, context: str | None) -> str:
    """Return the processor's instruction to transcribe, and the context that a request gives, such as names."""
    instruction = processor.default_transcription_prompt
    return f"{instruction}\nContext: {context.strip()}" if context and context.strip() else instruction
