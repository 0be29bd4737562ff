"""Makes longer clips of short ones, laid end to end with their transcripts: of one speaker, or spoken by the build.

Models that were trained on short clips alone repeated themselves on long ones. The short clips stay rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from llaso_common.audio import PAUSE_S

from . import draw
from .row_items import transcript_of
from .size_estimate import seconds
from .sources.base import Fact, Item, Recording, Speech

LONGEST_S = 25.0
"""Seconds that a joined clip has at most, which leaves a margin below the 30 seconds of an encoder's window."""
SHORTEST_S = 8.0
"""Seconds that a joined clip is meant to have at least."""
CORPORA = ("align", "instruct")
"""Corpora that get joined clips; the benchmark keeps recordings as they are."""


@dataclass
class _Group:
    """Clips of one speaker that wait to be joined, and the length that their clip is to have, in seconds."""

    wanted: float
    items: list[Item] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Joiner:
    """Collects clips of each speaker and split until they are long enough together.

    Args:
        share: of the clips that are joined as well.
        in_instruct: share of the joined clips that are in Instruct; all are in Align.
    """

    share: float
    in_instruct: float
    _waiting: dict[tuple[str, str], _Group] = field(default_factory=dict)

    def add(self, item: Item) -> Iterator[Item]:
        """Take a clip, and yield a joined one if it completes one.

        Not joined are clips without a transcript, recordings without a speaker, speech that has a voice, since the
        plan draws one voice for all of a joined clip, and speech without a split, since each text may get another.
        """
        if not transcript_of(item.facts) or len(item.sound) != 1 or draw.unit(0, item.id, "joined") >= self.share:
            return
        sound = item.sound[0]
        drawn_voice = isinstance(sound, Speech) and not sound.voice and item.split
        if not (item.speaker if isinstance(sound, Recording) else drawn_voice):
            return
        length = seconds(sound)
        if not 0 < length <= LONGEST_S:  # 0: it cannot be read, which the clip's own row tells
            return
        key = (item.split, item.speaker)
        group = self._waiting.get(key)
        if group is not None and group.seconds + PAUSE_S + length > LONGEST_S:
            yield from self._joined(self._waiting.pop(key))
            group = None
        if group is None:
            wanted = draw.between(0, item.id, "seconds joined", SHORTEST_S, LONGEST_S)
            group = self._waiting[key] = _Group(wanted)
        group.seconds += length + (PAUSE_S if group.items else 0.0)
        group.items.append(item)
        if group.seconds >= group.wanted:
            yield from self._joined(self._waiting.pop(key))

    def rest(self) -> Iterator[Item]:
        """Yield the joined clips of what still waits."""
        while self._waiting:
            yield from self._joined(self._waiting.pop(next(iter(self._waiting))))

    def _joined(self, group: _Group) -> Iterator[Item]:
        if len(group.items) < 2:
            return
        first, texts = group.items[0], [transcript_of(item.facts) for item in group.items]
        digest = sha256("\0".join(item.id for item in group.items).encode()).hexdigest()[:10]
        name = f"{first.id}-joined-{digest}"
        instruct = draw.unit(0, name, "in instruct/ASR") < self.in_instruct
        yield Item(
            id=name,
            facts=(Fact("ASR", " ".join(texts), corpora=CORPORA if instruct else CORPORA[:1]),),
            sound=tuple(sound for item in group.items for sound in item.sound),
            speaker=first.speaker,
            sentence=" ".join(item.sentence for item in group.items),
            split=first.split,
            where=first.where,
            joins=tuple(item.sentence for item in group.items if item.sentence),
        )
