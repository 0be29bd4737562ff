"""The fields of OpenAI's requests and responses that this server supports.

Unsupported fields are refused by name. Fields without effect on the answer (`user`, `metadata`, …) are accepted and
ignored.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from .errors import ApiError

SEED = Field(default=None, ge=-(2**63), lt=2**63)
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops = Annotated[
    list[Stop], BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop), Field(max_length=4)
]


class RequestModel(BaseModel):
    """Part of a request; unknown fields and values of another JSON type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class InputAudio(RequestModel):
    """An audio file in base64."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "aiff"]


class AudioPart(RequestModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[list[TextPart], BeforeValidator(_parts), Field(min_length=1)]
Parts = Annotated[
    list[Annotated[TextPart | AudioPart, Field(discriminator="type")]], BeforeValidator(_parts), Field(min_length=1)
]
"""Content of a message: a list of parts, or a string."""


class SystemMessage(RequestModel):
    """A system message; `developer` is OpenAI's newer name for the role."""

    role: Literal["system", "developer"]
    content: Texts
    name: str | None = None


class UserMessage(RequestModel):
    role: Literal["user"]
    content: Parts
    name: str | None = None


class AssistantMessage(RequestModel):
    """An earlier answer, as a client sends it back, empty fields included."""

    role: Literal["assistant"]
    content: Texts
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(RequestModel):
    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(RequestModel):
    type: Literal["text"]


class ChatRequest(RequestModel):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]] = Field(
        min_length=1
    )
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = SEED
    stop: Stops | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    modalities: list[Literal["text"]] | None = None
    response_format: TextFormat | None = None
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logprobs: Literal[False] | None = None

    # Accepted and ignored.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens is the old name of max_completion_tokens; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true")
        return self

    @property
    def answer_tokens(self) -> int | None:
        """Return the maximum number of tokens of the answer, under either name."""
        return self.max_completion_tokens or self.max_tokens


class TranscriptionRequest(BaseModel):
    """The form fields of `POST /v1/audio/transcriptions`, without the file."""

    model_config = ConfigDict(extra="forbid")

    model: str
    language: str | None = Field(default=None, pattern="^[A-Za-z]{2,3}$")
    prompt: str | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: float = Field(default=0, ge=0, le=1)
    stream: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TranscriptionRequest:
        if self.stream and self.response_format != "json":
            raise ValueError("a stream's response_format is json")
        return self


def validated(request_type: type[BaseModel], given: bytes | dict[str, Any]):
    """Validate a request, given as JSON or as form fields.

    Raises:
        ApiError: 400, naming the first invalid field.
    """
    try:
        if isinstance(given, bytes):
            return request_type.model_validate_json(given)
        return request_type.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # After a list index pydantic names the member of the union, which is not a step into the request.
        steps = [step for before, step in pairwise((None, *first["loc"])) if not isinstance(before, int)]
        param = ".".join(map(str, steps)) or None
        unknown = first["type"] == "extra_forbidden"
        what = "this server does not take it" if unknown else first["msg"]
        message = f"{param}: {what}" if param else what
        code = "unknown_parameter" if unknown else "invalid_value"
        raise ApiError(400, message, param=param, code=code) from None


def usage(prompt_tokens: int, audio_tokens: int, answer_tokens: int) -> dict[str, Any]:
    """Return the usage of a chat completion."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
        "prompt_tokens_details": {"audio_tokens": audio_tokens, "cached_tokens": 0},
    }


def transcription_usage(prompt_tokens: int, audio_tokens: int, answer_tokens: int) -> dict[str, Any]:
    """Return the usage of a transcription."""
    return {
        "type": "tokens",
        "input_tokens": prompt_tokens,
        "input_token_details": {"audio_tokens": audio_tokens, "text_tokens": prompt_tokens - audio_tokens},
        "output_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }
