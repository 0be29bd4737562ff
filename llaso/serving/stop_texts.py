"""Tokens to text as they come, and where a stop sequence ends it.

What has been said is never taken back: a character that is not whole yet, or the beginning of a possible stop
sequence, is held until the next tokens decide.
"""

from __future__ import annotations

from collections.abc import Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are not a whole character yet."""


class GrowingText:
    """The text of one answer.

    Args:
        tokenizer: the processor's; special tokens are left out.
        stops: sequences that end the answer, and are no part of it.
    """

    def __init__(self, tokenizer, stops: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens: list[int] = []
        # Some decoders treat a text's first token differently, so each piece is decoded with the piece before it.
        self._context, self._decoded = 0, 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token.

        Returns:
            The text that is certain now. `stopped` tells whether a stop sequence came.
        """
        self._tokens.append(token)
        text = self._new_text()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._context, self._decoded = self._decoded, len(self._tokens)
        return self._before_stop(text)

    def finish(self) -> str:
        """What was held back, now that no token follows."""
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
