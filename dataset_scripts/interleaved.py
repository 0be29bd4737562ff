"""Makes rows of written and spoken sentences by turns from transcribed items, to be written out as one text.

A model that reads such rows sees text and audio of one kind of content in one context. The items stay rows of their
own.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from llaso_common.audio import PAUSE_S
from llaso_common.tasks import Task

from . import draw
from .row_items import transcript_of
from .size_estimate import seconds
from .sources.base import Fact, Item, Note, Speech

SENTENCES = (2, 4)
"""Sentences of a row, at least and at most."""
ASKED = (
    "Write out all of the following, what is written and what is said, in its order.",
    "Some of this text is spoken. Write down the whole text.",
    "Read the text and listen to the speech between its parts; repeat everything in writing.",
)
MIX = Task(
    "MIX",
    "written and spoken sentences by turns",
    "interleaved text",
    "linguistic",
    "open",
    formats=("text_audio",),
    instruction=ASKED[0],
    instructions=tuple(("", text) for text in ASKED),
)
"""The task of the rows made here; open, since only a part of the text is in the audio."""


@dataclass
class Interleaver:
    """Collects items of each speaker until they make a row.

    Args:
        share: of the items that are interleaved as well, at most: a row that is too long is not made, nor is one of
            the last few items.
        longest: seconds that the spoken sentences of a row may take together.
    """

    share: float
    longest: float
    _waiting: dict[str, list[Item]] = field(default_factory=dict)

    def add(self, item: Item) -> Iterator[Item]:
        """Take an item of the training split, and yield a row's item if it completes one."""
        if not self.share or not transcript_of(item.facts) or len(item.sound) != 1 or item.joins:
            return
        (sound,) = item.sound
        of_someone = item.speaker or isinstance(sound, Speech)  # a synthetic voice is drawn for the whole row
        if not of_someone or isinstance(sound, Note) or draw.unit(0, item.id, "interleaved") >= self.share:
            return
        group = self._waiting.setdefault(item.speaker, [])
        group.append(item)
        fewest, most = SENTENCES
        if len(group) < fewest + draw.integer(0, group[0].id, "sentences") % (most - fewest + 1):
            return
        del self._waiting[item.speaker]
        first = 0 if draw.unit(0, group[0].id, "spoken first") < 0.5 else 1
        spoken = range(first, len(group), 2)
        if sum(seconds(group[place].sound[0]) + PAUSE_S for place in spoken) <= self.longest:
            yield _row_of(group, spoken)


def _row_of(items: list[Item], spoken: Container[int]) -> Item:
    """Return the item of a row of sentences, of which those at some places are spoken."""
    texts = [transcript_of(item.facts) for item in items]
    digest = sha256("\0".join(item.id for item in items).encode()).hexdigest()[:10]
    name = f"{items[0].id}-interleaved-{digest}"
    parts: list[str | None] = [None if place in spoken else text for place, text in enumerate(texts)]
    asked = draw.pick(0, name, "asked", ASKED)
    content = (asked, *parts) if parts[0] is None else (f"{asked}\n{parts[0]}", *parts[1:])
    target = " ".join(texts)
    return Item(
        id=name,
        facts=(
            Fact(
                MIX.code,
                target,
                corpora=("instruct",),
                messages=(("user", content), ("assistant", (target,))),
            ),
        ),
        sound=tuple(item.sound[0] for item, part in zip(items, parts, strict=True) if part is None),
        apart=True,
        speaker=items[0].speaker,
        sentence=" ".join(item.sentence for item in items),
        split="train",
        where=items[0].where,
        joins=tuple(item.sentence for item in items if item.sentence),
    )
