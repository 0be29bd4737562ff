"""Makes rows of written and spoken sentences by turns from transcribed items, to be written out as one text.

A model that reads such rows sees text and audio of one kind of content in one context. The items stay rows of their
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from llaso_common.audio import PAUSE_S
from llaso_common.tasks import Task

from . import draw
from .row_items import transcript_of
from .size_estimate import seconds
from .sources.base import Fact, Item, Note

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


@dataclass
class Interleaver:
    """Collects items of each speaker until they make a row.

    Args:
        share: of the items that are interleaved as well.
        longest: seconds that the spoken sentences of a row may take together.
    """

    share: float
    longest: float
    _waiting: dict[str, list[Item]] = field(default_factory=dict)

    def add(self, item: Item) -> Iterator[Item]:
        """Take an item of the training split, and yield a row's item if it completes one."""
        if not self.share or not transcript_of(item.facts) or len(item.sound) != 1 or isinstance(item.sound[0], Note):
            return
        if draw.unit(0, item.id, "interleaved") >= self.share:
            return
        group = self._waiting.setdefault(item.speaker, [])
        group.append(item)
        wanted = SENTENCES[0] + draw.integer(0, group[0].id, "sentences") % (SENTENCES[1] - SENTENCES[0] + 1)
        if len(group) >= wanted:
            del self._waiting[item.speaker]
            spoken_first = draw.unit(0, group[0].id, "spoken first") < 0.5
            spoken = group[not spoken_first :: 2]
            if sum(seconds(one.sound[0]) + PAUSE_S for one in spoken) <= self.longest:
                yield _row_of(group, spoken_first)


def _row_of(items: list[Item], spoken_first: bool) -> Item:
    """Return the item of a row in which every other sentence is spoken."""
    texts = [transcript_of(item.facts) for item in items]
    name = f"{items[0].id}-interleaved-{sha256(chr(0).join(item.id for item in items).encode()).hexdigest()[:10]}"
    parts: list[str | None] = [None if (place % 2 == 0) == spoken_first else text for place, text in enumerate(texts)]
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
