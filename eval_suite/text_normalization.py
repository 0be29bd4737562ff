"""Text normalization for speech recognition, the folding used to compare short answers, and where words end.

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
"""Finds texts in which a rule of the normalizer may change plain words, or depends on the blanks between them:
brackets, a lone apostrophe, "and a half", anything but single blanks."""
_LONG_NUMBER = re.compile(r"\d{4300}(?=\d)")
"""Python reads no number of more than 4,300 digits, which a run-away output may hold: it is cut into such pieces."""
_FENCE = "xylophone"
"""A plain word put beside a run, so that the run's edges see a neighbour as they do inside a text."""


@cache
def _whisper() -> tuple[EnglishTextNormalizer, frozenset[str]]:
    """Return the reference normalizer, and the words it treats as more than letters."""
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer = EnglishTextNormalizer()
    # Every letter group of a pattern: "\bmr\b" -> mr, "'s been\b" -> been; \b itself adds a harmless "b".
    patterns = [normalizer.ignore_patterns, *normalizer.replacers]
    words = {word for pattern in patterns for word in re.findall(r"[a-z]+", pattern.replace(r"\b", " "))}
    return normalizer, frozenset(words | normalizer.standardize_numbers.words)


@lru_cache(maxsize=200_000)
def _normalize_run(run: str, fenced_left: bool, fenced_right: bool) -> str:
    """Normalize a run of words that are not plain, with plain neighbours if it has any."""
    normalizer, _ = _whisper()
    text = f"{_FENCE + ' ' if fenced_left else ''}{run}{' ' + _FENCE if fenced_right else ''}"
    words = normalizer(text).split()
    return " ".join(words[fenced_left : len(words) - fenced_right])


@lru_cache(maxsize=50_000)
def whisper_english(text: str) -> str:
    """Apply Whisper's English normalizer; equal to the reference implementation up to white space at the ends.

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
    """Return the text with white space runs folded to one blank and none at the ends."""
    return " ".join(text.split())


def normalizer(name: str) -> Callable[[str], str]:
    """Return the normalization called `name`.

    Raises:
        ValueError: the name is not one of `NORMALIZATIONS`.
    """
    if name == "whisper_english":
        return whisper_english
    if name == "none":
        return collapse
    raise ValueError(f"unknown normalization {name!r}: choose one of {', '.join(NORMALIZATIONS)}")


_FINAL_STOPS = re.compile(r"[\s.!?。।؟۔]+$")


def fold(text: str) -> str:
    """Fold a short answer for comparison: NFKC, digits 0-9, lower case, blanks folded, final full stops removed."""
    if not text.isascii():
        text = plain_forms(unicodedata.normalize("NFKC", text))
    return _FINAL_STOPS.sub("", collapse(text.lower()))


# Scripts -------------------------------------------------------------------------------------------------------

_PLAIN = {0xFF01 + offset: chr(0x21 + offset) for offset in range(94)} | {
    ord("，"): ", ",  # between numbers it makes a list: without the blank, "60，100" would read as 60,100
    ord("−"): "-",
    ord("〜"): "~",
    ord("٫"): ".",
    ord("٬"): ",",
}
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_SPOKEN_POINT = re.compile(r"(?<=[0-9])[点點](?=[0-9])")
_VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))

OUTSIDE_LATIN = (
    "\u0530-\u1c7f\u1c90-\u1cff\u2e00-\ua63f\ua6a0-\ua71f\ua800-\uab2f\uab70-\uffff"
    "\U00010000-\U0001d3ff\U0001d800-\U0010ffff"
)
"""Ranges, for a character class, of all scripts but Latin, Greek and Cyrillic; theirs are the letters that form words
with digits."""
_LATIN_LIKE = re.compile(rf"[^\W_{OUTSIDE_LATIN}]")

UNSPACED_SCRIPTS = frozenset(
    "BALINESE BOPOMOFO CJK HENTAIGANA HIRAGANA IDEOGRAPHIC JAVANESE KATAKANA KATAKANA-HIRAGANA KHMER LAO MYANMAR NEW "
    "NUSHU TAI TANGUT THAI TIBETAN VERTICAL YI".split()
)
"""Scripts that put no blanks between words, by the first word of their characters' Unicode names."""


def plain_forms(text: str) -> str:
    """Write full-width forms and the decimal digits of every script as ASCII; accents and other letters stay.

    Unlike NFKC it makes no digit of a superscript: "10²" is not 102.
    """
    if text.isascii():
        return text
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text.translate(_PLAIN))
    return _SPOKEN_POINT.sub(".", text)


@lru_cache(maxsize=20_000)
def _script(character: str) -> str | None:
    """Return which letters and digits `character` forms words with; None if it is neither letter nor digit."""
    if not character.isalnum():
        return None
    if _LATIN_LIKE.match(character):
        return "LATIN"
    return unicodedata.name(character, "CJK").split()[0]


@lru_cache(maxsize=20_000)
def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc") and character not in _VARIATION_SELECTORS


def stands_alone(text: str, start: int, end: int) -> bool:
    """Return whether `text[start:end]` is a word of its own and no part of a longer word or number.

    A word is written in one script, and digits form words with Latin, Greek and Cyrillic letters only, so a change of
    script is a boundary. Scripts without blanks between words have no boundaries that can be seen. Korean particles
    follow their word without a blank, so a word in Hangul is bounded on its left only. A combining mark belongs to
    the letter before it.
    """
    before = start - 1
    while before >= 0 and _is_mark(text[before]):
        before -= 1
    if before >= 0:
        left = _script(text[before])
        if left is not None and left not in UNSPACED_SCRIPTS and left == (_script(text[start]) or "LATIN"):
            return False
    if end < len(text):
        if _is_mark(text[end]):
            return False
        right = _script(text[end])
        if right is not None and right not in UNSPACED_SCRIPTS and right != "HANGUL":
            if right == (_script(text[end - 1]) or "LATIN"):
                return False
    return True
