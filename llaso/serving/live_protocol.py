"""The events of OpenAI's realtime interface that live transcription takes and sends."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, RootModel

from .protocol import RequestModel, primary_language


class PcmFormat(RequestModel):
    """16-bit little-endian mono samples, their rate in Hz; OpenAI's clients send 24,000."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[8_000, 16_000, 24_000, 48_000] = 24_000


class LiveTranscription(RequestModel):
    """The model and its hints, as in a transcription's form fields."""

    model: str | None = None
    language: Annotated[str, AfterValidator(primary_language)] | None = None
    prompt: str | None = None


class ServerVad(RequestModel):
    """Pieces end at pauses. `threshold` cannot be chosen: `llaso serve --speech-finder` says how speech is found."""

    type: Literal["server_vad"]
    silence_duration_ms: int = Field(default=500, ge=100, le=5_000)
    prefix_padding_ms: int = Field(default=200, ge=0, le=2_000)
    threshold: float = Field(default=0.5, ge=0.5, le=0.5)

    # Accepted and ignored: there are no responses.
    create_response: bool | None = None
    interrupt_response: bool | None = None


class LiveInput(RequestModel):
    """What audio a client sends and how it is cut; with `turn_detection: null` only the client's commits cut it."""

    nullable: ClassVar[frozenset[str]] = frozenset({"turn_detection"})

    format: PcmFormat = PcmFormat()
    transcription: LiveTranscription = LiveTranscription()
    turn_detection: ServerVad | None = ServerVad(type="server_vad")


class LiveAudio(RequestModel):
    input: LiveInput = LiveInput()


class SessionSettings(RequestModel):
    """The settings of a session; a field that is left out keeps its value."""

    type: Literal["transcription"] = "transcription"
    audio: LiveAudio = LiveAudio()

    def updated(self, other: SessionSettings) -> SessionSettings:
        """Return these settings with the fields that another object sets."""
        return SessionSettings(audio=LiveAudio(input=_updated(self.audio.input, other.audio.input)))


def _updated(old: Any, new: Any) -> Any:
    """Return an object with the fields that another of its kind sets, at any depth; of another kind, the new one."""
    if not isinstance(new, RequestModel) or type(old) is not type(new):
        return new
    changed = {name: _updated(getattr(old, name), getattr(new, name)) for name in new.model_fields_set}
    return old.model_copy(update=changed)


class SessionUpdate(RequestModel):
    type: Literal["session.update"]
    event_id: str | None = None
    session: SessionSettings


class Append(RequestModel):
    """Sound in base64, in the session's format."""

    type: Literal["input_audio_buffer.append"]
    event_id: str | None = None
    audio: str


class Commit(RequestModel):
    type: Literal["input_audio_buffer.commit"]
    event_id: str | None = None


class Clear(RequestModel):
    type: Literal["input_audio_buffer.clear"]
    event_id: str | None = None


class ClientEvent(RootModel[Annotated[SessionUpdate | Append | Commit | Clear, Field(discriminator="type")]]):
    """An event that a client sends."""


def server_event(kind: str, **fields: Any) -> dict[str, Any]:
    """Return an event to send."""
    return {"type": kind, "event_id": f"event_{secrets.token_hex(8)}", **fields}


def session_record(name: str, settings: SessionSettings, id: str) -> dict[str, Any]:
    """Return a session's settings as `session.created` and `session.updated` show them."""
    shown = settings.model_dump()
    shown["audio"]["input"]["transcription"]["model"] = name
    return {"id": id, "object": "realtime.transcription_session", **shown}
