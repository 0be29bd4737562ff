"""Questions made from transcripts by rule, so that a corpus with transcripts alone gives instructions as well.

`questions:` of a block in `sources.yaml` names those that are wanted. Takes a transcript and the words of the whole
corpus; gives facts whose answers are certain because a rule made them. Every draw is a hash of the item's id, so that
the order of a manifest decides nothing.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llaso_common.tasks import MODALITIES, Task

from . import draw
from .sources.base import Fact

MOST_WORDS = 200
"""Bound of the answers of WORDS; a longer transcript is not asked about."""
YES, NO = "yes", "no"
CHOICES = 4
"""Words to choose from in SPOT; one of them is said."""
SHORTEST = 4
"""Letters of a word that is asked for; shorter ones are hardly heard."""
ALIKE = 4
"""Two words that begin with so many equal letters are too much alike for one to be called unsaid: day, days."""
CLAUSE = 3
"""Words of an answer of ABOUT at least."""
COMMON = frozenset(
    "about after again also although always another because been before being both came come could does down each "
    "else even ever every from gave give goes gone have having here himself herself into itself just know like made "
    "make many might more most much must never none only other ours over same should since some such than that their "
    "them then there these they this those though through until upon very want well went were what when where which "
    "while will with would your yours".split()
)
"""Words without much meaning of their own, which are not asked for."""
JOINTS = frozenset("and but or because when while which who that if so as then than where though although for".split())
"""Words at which a sentence without punctuation is cut into clauses."""

WORDS_ASKED = (
    "How many words are said?",
    "Count the words that are said and answer with the number.",
    "Say how many words the speaker uses, as a number.",
)
SPOT_ASKED = (
    "Which of these words is said: {choices}?",
    "Exactly one of these words occurs: {choices}. Which one?",
    "Pick the word that the speaker uses: {choices}.",
)
SAID_ASKED = (
    "Is the word {word} said? Answer yes or no.",
    "Does the speaker use the word {word}: yes or no?",
    "Listen for the word {word}. Is it there, yes or no?",
)
AFTER_ASKED = (
    "Which word comes right after {word}?",
    "Name the word that follows {word}.",
    "What is the next word after {word}?",
)
ABOUT_ASKED = (
    "What is said about {word}?",
    "Give the part of the sentence that is about {word}.",
    "Quote what the speaker says about {word}.",
)


@dataclass(frozen=True)
class Vocabulary:
    """The words of a corpus that may be asked for, to draw the unsaid ones as often as they are said elsewhere.

    Args:
        words: in the order of the alphabet.
        upto: how often the words up to each are said, together.
    """

    words: tuple[str, ...]
    upto: tuple[int, ...]

    @classmethod
    def of(cls, transcripts: Iterable[str]) -> Vocabulary:
        """Count the words of transcripts; memory holds each once."""
        counts = Counter(word for text in transcripts for word in asked_words(split_words(text)))
        words = sorted(counts)
        return cls(tuple(words), tuple(itertools.accumulate(counts[word] for word in words)))

    def unsaid(self, id: str, what: str, said: Sequence[str], count: int) -> list[str]:
        """Draw different words that are not said, nor like any that is; fewer than `count` if there are no more."""
        found: list[str] = []
        for attempt in range(20 * count if self.words else 0):
            point = draw.integer(0, id, f"{what}/{attempt}") % self.upto[-1]
            word = self.words[bisect.bisect_right(self.upto, point)]
            if not any(word[:ALIKE] == other[:ALIKE] for other in (*said, *found)):
                found.append(word)
            if len(found) == count:
                break
        return found


def split_words(text: str) -> list[str]:
    """Split a transcript into words as it writes them, in lower case, without punctuation around them."""
    bare = (re.sub(r"^\W+|\W+$", "", word) for word in text.casefold().split())
    return [word for word in bare if word]


def asked_words(words: Sequence[str]) -> list[str]:
    """Return the words that may be asked for, in their order."""
    return [word for word in words if len(word) >= SHORTEST and word not in COMMON and word.isalpha()]


def count_words(id: str, text: str, words: Sequence[str], known: Vocabulary) -> Fact | None:
    """Ask how many words are said."""
    return Fact("WORDS", str(len(words)), input=text) if len(words) <= MOST_WORDS else None


def is_said(id: str, text: str, words: Sequence[str], known: Vocabulary) -> Fact | None:
    """Ask whether a word is said: in half of the items one that is, else one that is said elsewhere."""
    said = asked_words(words)
    unsaid = known.unsaid(id, "unsaid", words, 1)
    if not said or not unsaid:
        return None  # both answers must have been possible, or the answer would follow from the question
    yes = draw.unit(0, id, "yes") < 0.5
    word = draw.pick(0, id, "said", said) if yes else unsaid[0]
    return _worded("SAID", SAID_ASKED, id, word, YES if yes else NO, text)


def spot_word(id: str, text: str, words: Sequence[str], known: Vocabulary) -> Fact | None:
    """Ask which of four words is said."""
    said = asked_words(words)
    unsaid = known.unsaid(id, "spot", words, CHOICES - 1)
    if not said or len(unsaid) < CHOICES - 1:
        return None
    word = draw.pick(0, id, "spotted", said)
    return Fact("SPOT", word, choices=tuple(sorted((word, *unsaid))), input=text)


def word_after(id: str, text: str, words: Sequence[str], known: Vocabulary) -> Fact | None:
    """Ask for the word after one that is said once."""
    asked, counts = set(asked_words(words)), Counter(words)
    places = [place for place, word in enumerate(words[:-1]) if word in asked and counts[word] == 1]
    if not places:
        return None
    place = draw.pick(0, id, "after", places)
    return _worded("AFTER", AFTER_ASKED, id, words[place], words[place + 1], text)


def said_about(id: str, text: str, words: Sequence[str], known: Vocabulary) -> Fact | None:
    """Ask for the clause that a word is in; only if the transcript has more than that clause."""
    clauses = [clause for clause in split_clauses(text) if len(clause) >= CLAUSE]
    found = [
        (word, clause)
        for clause in clauses
        if len(clause) < len(words)
        for word in asked_words(clause)
        if words.count(word) == 1
    ]
    if not found:
        return None
    word, clause = draw.pick(0, id, "about", found)
    return _worded("ABOUT", ABOUT_ASKED, id, word, " ".join(clause), text)


def split_clauses(text: str) -> list[list[str]]:
    """Cut a transcript into clauses, at punctuation and before conjunctions; return the words of each."""
    clauses: list[list[str]] = [[]]
    for piece in text.casefold().split():
        word = re.sub(r"^\W+|\W+$", "", piece)
        if word in JOINTS and clauses[-1]:
            clauses.append([])
        elif word:
            clauses[-1].append(word)
        if re.search(r"[.,;:!?]$", piece) and clauses[-1]:
            clauses.append([])
    return [clause for clause in clauses if clause]


Rule = Callable[[str, str, Sequence[str], Vocabulary], Fact | None]

RULES: dict[str, Rule] = {
    "WORDS": count_words,
    "SAID": is_said,
    "SPOT": spot_word,
    "AFTER": word_after,
    "ABOUT": said_about,
}
"""The questions that can be made, by the task that they are."""


def _task(code: str, name: str, answer: str, asked: Sequence[str], **more: object) -> Task:
    wordings = tuple(("", text) for text in asked)
    kinds = {"answer": answer, "category": "linguistic", "formats": MODALITIES, "instruction": asked[0]}
    return Task(code, name, name, instructions=wordings, **{**kinds, **more})  # type: ignore[arg-type]


TASKS_MADE: dict[str, Task] = {
    task.code: task
    for task in (
        _task("WORDS", "number of words", "number", WORDS_ASKED, numbers=(1, MOST_WORDS)),
        _task("SAID", "whether a word is said", "closed", SAID_ASKED, labels=(YES, NO)),
        _task("SPOT", "which of four words is said", "closed", SPOT_ASKED),
        _task("AFTER", "the word after another", "label", AFTER_ASKED),
        _task("ABOUT", "what is said about a word", "open", ABOUT_ASKED, category="semantic"),
    )
}


def _worded(code: str, asked: Sequence[str], id: str, word: str, target: str, text: str) -> Fact:
    wording = draw.pick(0, id, f"wording/{code}", asked)
    return Fact(code, target, instruction=wording.format(word=f'"{word}"'), input=text)


def shares_of(said: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """Return the share of the items that get each question: as it is said, else all."""
    return dict(said) if isinstance(said, Mapping) else dict.fromkeys(said, 1.0)


def made(id: str, text: str, shares: Mapping[str, float], known: Vocabulary) -> Iterator[Fact]:
    """Yield the questions of one item.

    Args:
        id: of the item; what is drawn depends on it alone.
        text: its transcript.
        shares: by task, the share of the items that get it.
        known: the corpus's words.
    """
    words = split_words(text)
    for code, share in shares.items():
        if words and draw.unit(0, id, f"asked/{code}") < share and (fact := RULES[code](id, text, words, known)):
            yield fact
