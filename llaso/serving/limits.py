"""Limits of one server: sizes, durations, counts and timeouts, each with a unit and a default."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


def _limit(default: float, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """Limits of one server. Each field is an option of `llaso serve`, with the same help text."""

    body_mib: int = _limit(32, "size of a request's body; audio in base64 takes a third more than the file")
    audio_seconds: float = _limit(
        600.0, "length of a request's audio, all clips together; in a live session, of the sound not yet transcribed"
    )
    answer_tokens: int = _limit(1024, "tokens of an answer, and what max_tokens is if a request names none")
    batch_rows: int = _limit(32, "requests answered together")
    batch_tokens: int = _limit(65_536, "tokens held for them, padding included; a single request may exceed it")
    waiting: int = _limit(64, "requests beyond those; the next one gets status 429")
    upload_seconds: float = _limit(30.0, "for a request to arrive whole (408)")
    answer_seconds: float = _limit(300.0, "from then to the last token, waiting included (504)")
    live_sessions: int = _limit(8, "live transcriptions at once; the next one gets status 429")
    live_seconds: float = _limit(7200.0, "length of a live transcription; it is closed then")
    live_idle_seconds: float = _limit(120.0, "that a live transcription may send nothing; it is closed then")
    shutdown_seconds: float = _limit(30.0, "that running requests get to end after SIGTERM")

    def __post_init__(self) -> None:
        for limit in fields(self):
            least = 0 if limit.name == "waiting" else 1
            if not getattr(self, limit.name) >= least:
                raise ValueError(f"{limit.name} is {getattr(self, limit.name)}; it must be at least {least}")

    @property
    def body_bytes(self) -> int:
        """Return `body_mib` in bytes."""
        return self.body_mib * 2**20

    @property
    def max_requests(self) -> int:
        """Return how many requests may be running or waiting at once."""
        return self.batch_rows + self.waiting
