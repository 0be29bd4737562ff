"""Decoding an answer token by token, up to a stop sequence.

Text that was returned is final. An incomplete character, or the beginning of a possible stop sequence, is held back
until later tokens decide.
"""

from __future__ import annotations

from collections.abc import Sequence

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for the bytes of an incomplete character."""


class IncrementalDetokenizer:
    """Decodes one answer as its tokens arrive.

    Args:
        tokenizer: the processor's tokenizer; special tokens are skipped.
        stops: sequences that end the answer; they are not part of it.
    """

    def __init__(self, tokenizer, stops: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens: list[int] = []
        # Some decoders treat a text's first token differently, so each chunk is decoded with the one before it.
        self._context, self._decoded = 0, 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add one token.

        Returns:
            The text that became final. `stopped` is set once a stop sequence is complete.
        """
        self._tokens.append(token)
        text = self._new_text()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self._context, self._decoded = self._decoded, len(self._tokens)
        return self._before_stop(text)

    def finish(self) -> str:
        """Return the text that was held back; no token follows."""
        if self.stopped:
            return ""
        text = self._before_stop(self._new_text())
        rest, self._held = self._held, ""
        return text + rest

    def _new_text(self) -> str:
        known = self._decode(self._tokens[self._context : self._decoded])
        return self._decode(self._tokens[self._context :])[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _before_stop(self, text: str) -> str:
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop sequence."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)
