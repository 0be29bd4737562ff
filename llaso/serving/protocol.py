"""The fields of OpenAI's requests and responses that this server supports.

Unsupported fields are refused by name. Fields without effect on the answer (`user`, `metadata`, …) are accepted and
ignored.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ..transcription.transcript_formats import Segment
from .errors import ApiError

SEED = Field(default=None, ge=-(2**63), lt=2**63)
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stops = Annotated[
    list[Stop], BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop), Field(max_length=4)
]


class RequestModel(BaseModel):
    """Part of a request; unknown fields and values of another JSON type are errors.

    Attributes:
        nullable: fields whose null says something.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    nullable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, given: Any) -> Any:
        """Treat null, [] and {} as not given, as clients send them for unused fields; a required field keeps them."""
        if not isinstance(given, dict):
            return given
        kept = {name for name, field in cls.model_fields.items() if field.is_required()} | cls.nullable
        return {name: value for name, value in given.items() if name in kept or value not in (None, [], {})}


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class InputAudio(RequestModel):
    """An audio file in base64, or a data URI of one. The file tells its own format; `format` is not used."""

    data: str
    format: str | None = None


class AudioPart(RequestModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(RequestModel):
    """A data URI, or a URL of a host that the server may fetch from."""

    url: str


class AudioUrlPart(RequestModel):
    type: Literal["audio_url"]
    audio_url: AudioUrl


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[list[TextPart], BeforeValidator(_parts), Field(min_length=1)]
Parts = Annotated[
    list[Annotated[TextPart | AudioPart | AudioUrlPart, Field(discriminator="type")]],
    BeforeValidator(_parts),
    Field(min_length=1),
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
    content: Annotated[list[TextPart], BeforeValidator(_parts)] = []
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


def primary_language(tag: str) -> str:
    """Return the language of a tag such as en or en-US, without its region or script."""
    if not re.fullmatch("[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", tag):
        raise ValueError(f"{tag!r} is no language tag; write it as en or en-US")
    return re.split("[-_]", tag)[0].lower()


class TranscriptionRequest(BaseModel):
    """The form fields of `POST /v1/audio/transcriptions`, without the file; an empty field is not given."""

    model_config = ConfigDict(extra="forbid")

    model: str
    language: Annotated[str, AfterValidator(primary_language)] | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(default=0, ge=0, le=1)
    stream: bool = False
    timestamp_granularities: list[Literal["segment"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if value not in ("", [], [""])}

    @model_validator(mode="after")
    def _consistent(self) -> TranscriptionRequest:
        if self.stream and self.response_format != "json":
            raise ValueError("a stream's response_format is json")
        if self.timestamp_granularities and not (self.stream or self.response_format == "verbose_json"):
            raise ValueError("timestamp_granularities is for response_format=verbose_json, or a stream")
        return self

    @property
    def with_segments(self) -> bool:
        """Return whether the response has the times of segments."""
        return bool(self.timestamp_granularities) or self.response_format in ("srt", "verbose_json", "vtt")


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
        first = error.errors(include_url=False, include_input=False)[0]
        # After a list index pydantic names the member of the union, which is not a step into the request.
        steps = [step for before, step in pairwise((None, *first["loc"])) if not isinstance(before, int)]
        param = ".".join(map(str, steps)) or None
        unknown = first["type"] == "extra_forbidden"
        if unknown:
            what = "this server does not take it"
        else:
            what = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
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


def segment_record(number: int, segment: Segment) -> dict[str, Any]:
    """Return a segment as an object of a transcription's `segments`."""
    return {"id": number, **asdict(segment)}
