"""Reads one answer into an outcome and, if it has one, a value. Nothing is dropped and nothing is guessed.

Every parser takes the text of one answer and returns `Parsed`; a failed generation never reaches them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from .phonemes import arpabet_to_ipa, ipa_symbols
from .text_normalization import OUTSIDE_LATIN, collapse, fold, plain_forms, stands_alone

ANSWERED = "answered"
ABSTAINED = "abstained"  # empty, or no label
AMBIGUOUS = "ambiguous"  # several labels, several different numbers
MALFORMED = "malformed"  # a number or a structure that cannot be read
ERROR = "error"  # the generation failed
OUTCOMES = (ANSWERED, ABSTAINED, AMBIGUOUS, MALFORMED, ERROR)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer as it was read: the outcome, and the value (a label, a number, symbols, slots, scores or text)."""

    outcome: str
    value: Any = None


# Labels --------------------------------------------------------------------------------------------------------

_DASHES = str.maketrans({dash: "-" for dash in "‐‑‒–—−~"})
_MULTIPLIERS = dict(
    zip("十百백千천万萬만亿億억", (1e1, 1e2, 1e2, 1e3, 1e3, 1e4, 1e4, 1e4, 1e8, 1e8, 1e8), strict=True)
)
"""Characters that multiply the number before them: "100万" is a million."""


_TO = "to|到|至|から|부터|에서|ถึง"
"""Words that may stand between the ends of a range in place of a dash."""
_YEARS_UNIT = r"years?\b|[岁歲歳세살]"


def _label_pattern(text: str) -> str:
    """Return a pattern that finds `text`; blanks, dashes and "_" are equal, and a range may be in words."""
    parts = []
    for part in re.split(r"[\s_]+", text):
        pieces = re.split(r"-+", part)
        escaped = re.escape(pieces[0])
        for left, right in pairwise(pieces):
            is_range = left[-1:].isdigit() and right[:1].isdigit()
            dash = rf"(?:\s*(?:{_YEARS_UNIT}))?\s*(?:-|{_TO})\s*" if is_range else r"\s*-\s*"
            escaped += dash + re.escape(right)
        parts.append(escaped)
    return r"[\s_-]+".join(parts)


def _find_label(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Return the places at which `pattern` stands in `text` as a word or number of its own."""
    position = 0
    while match := pattern.search(text, position):
        start, end = match.span()
        if stands_alone(text, start, end) and not _within_number(text, start, end):
            yield start, end
            position = end
        else:
            position = start + 1


def _within_number(text: str, start: int, end: int) -> bool:
    """Return whether the digits at an end of `text[start:end]` go on: behind a decimal point, or by a multiplier."""
    before, after = text[max(start - 2, 0) : start], text[end : end + 2]
    if text[start].isdigit() and len(before) == 2 and before[1] == "." and before[0].isdigit():
        return True
    if text[end - 1].isdigit():
        return after[:1] in _MULTIPLIERS or (len(after) == 2 and after[0] == "." and after[1].isdigit())
    return False


class LabelSet:
    """The labels a row offers, with declared aliases, ready to be found in answers.

    Args:
        choices: the labels in the row's own wording.
        aliases: folded label -> further wordings that mean it.

    Raises:
        ValueError: the set is empty, or two labels cannot be told apart.
    """

    def __init__(self, choices: Sequence[str], aliases: Mapping[str, Sequence[str]] | None = None) -> None:
        self.labels = tuple(fold(choice) for choice in choices)
        if not self.labels or "" in self.labels:
            raise ValueError("a closed set needs at least one label, and no empty one")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels repeat in the choices: {', '.join(choices)}")
        wordings = {label: label for label in self.labels}
        for label in self.labels:
            for alias in (aliases or {}).get(label, ()):
                wordings.setdefault(fold(alias), label)
        ordered = sorted(wordings, key=lambda wording: (-len(wording), wording))
        self._patterns = [(re.compile(_label_pattern(wording)), wordings[wording]) for wording in ordered]
        self._wordings = wordings

    def find(self, text: str) -> list[str]:
        """Return the distinct labels in `text`, longest wordings first, overlapping shorter ones removed."""
        text = fold(text).translate(_DASHES)
        if text in self._wordings:
            return [self._wordings[text]]
        taken: list[tuple[int, int]] = []
        found: list[str] = []
        for pattern, label in self._patterns:
            for start, end in _find_label(pattern, text):
                if all(end <= other_start or start >= other_end for other_start, other_end in taken):
                    taken.append((start, end))
                    if label not in found:
                        found.append(label)
        return found

    def parse(self, text: str) -> Parsed:
        """Parse labels: one is an answer, none an abstention, several are ambiguous."""
        found = find_cached(self, text)
        if len(found) == 1:
            return Parsed(ANSWERED, found[0])
        return Parsed(AMBIGUOUS if found else ABSTAINED)

    def canonical(self, reference: str) -> str:
        """Return the label a reference names.

        Raises:
            ValueError: the reference names none of the labels, or several.
        """
        found = self.find(reference)
        if len(found) != 1:
            raise ValueError(
                f"the reference {reference!r} names {'none' if not found else 'several'} of the row's choices "
                f"({', '.join(self.labels)})"
            )
        return found[0]


@lru_cache(maxsize=100_000)
def find_cached(labels: LabelSet, text: str) -> tuple[str, ...]:
    """Cache `labels.find(text)`: systems repeat themselves."""
    return tuple(labels.find(text))


# Numbers -------------------------------------------------------------------------------------------------------

_SEMITONES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
_LATIN = rf"[^\W{OUTSIDE_LATIN}]"
"""A letter, digit or "_" that forms words with digits: 60 in "音高是60です" stands alone, in "MP60" it does not."""
_NOTE = (
    rf"(?<!(?!_){_LATIN})(?P<letter>[A-Ga-g])(?P<accidental>[#♯b♭]?)(?P<octave>-?\d{{1,2}})(?!{_LATIN}|[#♯♭]|[.]\d)"
)
_NUMBERS = re.compile(
    rf"(?P<note>{_NOTE})|(?P<number>(?<![\d.])(?:(?<!\w)-)?(?<!{_LATIN})\d+(?:,\d{{3}})*(?:\.\d+)?)"
    rf"(?:(?P<decade>s(?!{_LATIN})|代|대|[多几幾來来](?=[岁歲歳]))|(?P<multiplier>[{''.join(_MULTIPLIERS)}]))?"
)
_RANGE_WORDS = re.compile(rf"\s*(?:[-–—~]|and|through|和|与|與|と|{_TO})\s*", re.IGNORECASE)
_AND = frozenset(("and", "和", "与", "與", "と"))
_BETWEEN = re.compile(r"\bbetween\s*(?:the\s+ages?\s+of\s+)?$", re.IGNORECASE)
_BETWEEN_AFTER = re.compile(r"\s*[岁歲歳]?(?:之?[间間]|の間)")
_YEARS = re.compile(rf"\s*(?:{_YEARS_UNIT})")
DECADE_MIDDLE = 4.5
"""A decade such as "20s" is the range 20-29: its midpoint is this far above its first year."""


def note_number(letter: str, accidental: str, octave: int) -> int:
    """Return the MIDI number of a note name, C4 = 60 (scientific pitch notation)."""
    return 12 * (octave + 1) + _SEMITONES[letter.lower()] + _ACCIDENTALS[accidental]


def find_numbers(text: str) -> list[float]:
    """Return the numbers in `text`, in reading order: single numbers, midpoints of ranges, note names as MIDI."""
    text = plain_forms(text)
    values: list[float] = []
    spans: list[tuple[int, int]] = []
    kinds: list[str] = []
    for match in _NUMBERS.finditer(text):
        if match["note"]:
            value: float = note_number(match["letter"], match["accidental"], int(match["octave"]))
            kind = "note"
        else:
            value = float(match["number"].replace(",", ""))  # infinite if it has too many digits, and then on no scale
            kind = "decade" if match["decade"] else "number"
            if kind == "decade":
                value += DECADE_MIDDLE
            value *= _MULTIPLIERS.get(match["multiplier"], 1)
        if values and kinds[-1] != "range":
            between = text[spans[-1][1] : match.start()]
            joined = _RANGE_WORDS.fullmatch(_YEARS.sub("", between))
            dash = value < 0 and not between.strip()  # "20 -25" and "20-25": the sign is the range's dash
            is_and = joined is not None and joined[0].strip().lower() in _AND
            said_between = _BETWEEN.search(text[: spans[-1][0]]) or _BETWEEN_AFTER.match(text, match.end())
            if dash or (joined and (not is_and or said_between)):
                values[-1] = (values[-1] + abs(value)) / 2
                spans[-1] = (spans[-1][0], match.end())
                kinds[-1] = "range"
                continue
        values.append(value)
        spans.append(match.span())
        kinds.append(kind)
    return values


def parse_number(text: str, usable: tuple[float, float]) -> Parsed:
    """Parse one number (however often it is repeated) as an answer; several different ones are ambiguous.

    Args:
        text: the answer.
        usable: bounds outside of which a number is not an answer of this task.
    """
    if not text.strip():
        return Parsed(ABSTAINED)
    values = set(find_numbers(text))
    if len(values) > 1:
        return Parsed(AMBIGUOUS)
    if not values:
        return Parsed(MALFORMED)
    value = values.pop()
    return Parsed(ANSWERED, value) if usable[0] <= value <= usable[1] else Parsed(MALFORMED)


# Structures ----------------------------------------------------------------------------------------------------

_SLOT = re.compile(r"\[\s*([^\[\]:]+?)\s*:\s*([^\[\]]*?)\s*\]")

Slots = Counter[tuple[str, str]]


def find_slots(text: str) -> Slots:
    """Return the `[type : value]` slots of `text`, folded, as a multiset."""
    return Counter((fold(kind), fold(value)) for kind, value in _SLOT.findall(plain_forms(text)))


def parse_slots(text: str) -> Parsed:
    """Parse slots as a multiset; brackets that are no slot make the answer malformed, readable slots still count."""
    if not text.strip():
        return Parsed(ABSTAINED, Counter())
    rest = _SLOT.sub("", plain_forms(text))
    return Parsed(MALFORMED if "[" in rest or "]" in rest else ANSWERED, find_slots(text))


_SCORE_VALUE = r"(?:\s+score)?\s*(?:is|of|[:=-]|是|為|为)?\s*(\d+(?:\.\d+)?)(?![\d.]*[/%\d])"
_SENTENCE_SCORE = re.compile(rf"(?<!{_LATIN})(accuracy|prosod(?:ic|y)|fluency|total){_SCORE_VALUE}", re.IGNORECASE)
_WORD_SCORE = re.compile(rf"(?<!{_LATIN})(accuracy|stress|total){_SCORE_VALUE}", re.IGNORECASE)
_WORD_HEAD = re.compile(r"\bfor\s+[\"“'‘]([^\"”]+?)[\"”'’]\s*[,:]", re.IGNORECASE)

Scores = dict[tuple[str, ...], float]


def find_sentence_scores(text: str) -> Scores:
    """Scores of a sentence by ("accuracy",), ("prosodic",), ("fluency",), ("total",); the first mention wins."""
    scores: Scores = {}
    for name, value in _SENTENCE_SCORE.findall(plain_forms(text)):
        dimension = "prosodic" if name.lower().startswith("prosod") else name.lower()
        scores.setdefault((dimension,), float(value))
    return scores


def find_word_scores(text: str) -> Scores:
    """Scores of words by (word, occurrence, dimension), as in `For "mark", accuracy is 10, stress is 10, …`."""
    text = plain_forms(text)
    scores: Scores = {}
    heads = list(_WORD_HEAD.finditer(text))
    seen: Counter[str] = Counter()
    ends = [head.start() for head in heads[1:]] + [len(text)]
    for head, end in zip(heads, ends, strict=False):
        word = fold(head[1])
        seen[word] += 1
        for name, value in _WORD_SCORE.findall(text[head.end() : end]):
            scores.setdefault((word, str(seen[word]), name.lower()), float(value))
    return scores


def parse_pronunciation(text: str, word_level: bool, usable: tuple[float, float]) -> Parsed:
    """Scores by what they score; a score outside `usable` is not read, an answer without any is malformed."""
    if not text.strip():
        return Parsed(ABSTAINED, {})
    scores = find_word_scores(text) if word_level else find_sentence_scores(text)
    scores = {key: value for key, value in scores.items() if usable[0] <= value <= usable[1]}
    return Parsed(ANSWERED if scores else MALFORMED, scores)


# Text ----------------------------------------------------------------------------------------------------------


def parse_text(text: str) -> Parsed:
    """Parse free text: empty is an abstention."""
    return Parsed(ANSWERED, collapse(text)) if text.strip() else Parsed(ABSTAINED, "")


def parse_phonemes(text: str) -> Parsed:
    """Parse IPA symbols; an answer in ARPAbet is written as IPA first."""
    symbols = ipa_symbols(arpabet_to_ipa(text) or text)
    return Parsed(ANSWERED if symbols else ABSTAINED, symbols)
