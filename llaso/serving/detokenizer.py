"""Decodes an answer token by token, up to a stop sequence.

Text that was returned is final. An incomplete character, or the beginning of a possible stop sequence, is held back
until later tokens decide.
"""

from __future__ import annotations

from collections.abc import Sequence

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""The replacement character, which a decoder writes for the bytes of an incomplete character."""


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
        if self.stopped:
            return ""
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
        text = self._before_stop(self._new_text(), final=True)
        rest, self._held = self._held, ""
        return text + rest

    def _new_text(self) -> str:
        known = self._decode(self._tokens[self._context : self._decoded])
        return self._decode(self._tokens[self._context :])[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _before_stop(self, text: str, final: bool = False) -> str:
        """Split held and new text into what is final, which is returned, and what is held.

        Of several stop sequences the one that begins first ends the text. One that begins earlier than a complete one
        may still be incomplete, so the text is held until it is decided.
        """
        text = self._held + text
        end = min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=len(text))
        stops = () if final else self._stops
        undecided = min((_start_of_partial(text, stop) for stop in stops), default=len(text))
        self.stopped = end < len(text) and end <= undecided
        split = min(end, undecided)
        self._held = "" if self.stopped else text[split:]
        return text[:split]


def _start_of_partial(text: str, stop: str) -> int:
    """Return where the longest incomplete stop sequence at the end of the text begins, or the length of the text."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return len(text) - next((length for length in lengths if text.endswith(stop[:length])), 0)
