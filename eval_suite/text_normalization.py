"""Text normalization for speech recognition and the folding used to compare short answers.

`whisper_english` is exactly Whisper's English normalizer (PyPI package whisper-normalizer, its spelling map
included), applied piecewise: its rules look at neighbouring words only inside runs of numbers, symbols and
contractions, so plain words are looked up and each distinct run is normalized once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whisper_normalizer.english import EnglishTextNormalizer

NORMALIZATIONS = ("whisper_english", "none")
"""Names a scoring run may ask for; `whisper_english` is the default of the strict protocol."""

_PLAIN_WORD = re.compile(r"([a-z]+)(?:[,;:!?]*|\.)")
"""Letters, perhaps with the punctuation that the normalizer drops without looking further."""
_WHOLE_TEXT_RULES = re.compile(r"[()<>\[\]]|(?:^|\s)'|half|\s\s|[^\S ]")
"""Where one of the normalizer's rules may reach over plain words or depends on the blanks between them: brackets, a
lone apostrophe, "and a half", anything but single blanks."""
_LONG_NUMBER = re.compile(r"\d{4300}(?=\d)")
"""Python reads no number of more than 4,300 digits, which a run-away output may hold: it is cut into such pieces."""
_FENCE = "xylophone"
"""A plain word put beside a run, so that the run's edges see a neighbour as they do inside a text."""


@cache
def _whisper() -> tuple[EnglishTextNormalizer, frozenset[str]]:
    """The reference normalizer, and the words it treats as more than letters."""
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer = EnglishTextNormalizer()
    # Every letter group of a pattern: "\bmr\b" -> mr, "'s been\b" -> been; \b itself adds a harmless "b".
    patterns = [normalizer.ignore_patterns, *normalizer.replacers]
    words = {word for pattern in patterns for word in re.findall(r"[a-z]+", pattern.replace(r"\b", " "))}
    return normalizer, frozenset(words | normalizer.standardize_numbers.words)


@lru_cache(maxsize=200_000)
def _normalize_run(run: str, fenced_left: bool, fenced_right: bool) -> str:
    """Normalize a run of words that are not plain, with plain neighbours where it has any."""
    normalizer, _ = _whisper()
    text = f"{_FENCE + ' ' if fenced_left else ''}{run}{' ' + _FENCE if fenced_right else ''}"
    words = normalizer(text).split()
    return " ".join(words[fenced_left : len(words) - fenced_right])


@lru_cache(maxsize=50_000)
def whisper_english(text: str) -> str:
    """Whisper's English normalizer; equal to the reference implementation up to white space at the ends.

    Source: Radford et al. 2022, appendix C; code as published in whisper-normalizer.
    """
    normalizer, special = _whisper()
    text = _LONG_NUMBER.sub(r"\g<0> ", text.lower().strip())
    if _WHOLE_TEXT_RULES.search(text):
        return " ".join(normalizer(text).split())
    spelling = normalizer.standardize_spellings.mapping
    pieces: list[str] = []
    run: list[str] = []
    for word in text.split():
        match = _PLAIN_WORD.fullmatch(word)
        if match is None or match[1] in special:
            run.append(word)
            continue
        if run:
            pieces.append(_normalize_run(" ".join(run), bool(pieces), True))
            run = []
        pieces.append(spelling.get(match[1], match[1]))
    if run:
        pieces.append(_normalize_run(" ".join(run), bool(pieces), False))
    return " ".join(piece for piece in pieces if piece)


def collapse(text: str) -> str:
    """The text with white space runs folded to one blank and none at the ends."""
    return " ".join(text.split())


def normalizer(name: str) -> Callable[[str], str]:
    """The normalization called `name`.

    Raises:
        ValueError: the name is not one of `NORMALIZATIONS`.
    """
    if name == "whisper_english":
        return whisper_english
    if name == "none":
        return collapse
    raise ValueError(f"unknown normalization {name!r}: choose one of {', '.join(NORMALIZATIONS)}")


_FINAL_STOPS = re.compile(r"[\s.!?。]+$")


def fold(text: str) -> str:
    """Fold a short answer for comparison: NFKC, lower case, blanks folded, final full stops removed."""
    return _FINAL_STOPS.sub("", collapse(unicodedata.normalize("NFKC", text).lower()))
