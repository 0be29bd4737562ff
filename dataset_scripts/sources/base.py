"""Defines what a corpus module gives to the build: sounds, facts about them, and a declaration of the corpus.

A module under `sources/` holds one `SOURCE = Source(...)` whose `read(root)` walks the corpus's public layout on disk
and yields an `Item` for each recording (or text to speak), or a `Reject` for each one that cannot be used. Nothing is
decoded here, nothing is drawn at random and no prompt is written: that is the plan's part.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llaso_common.tasks import TASKS

OPEN_LICENSES = frozenset(
    ("Apache-2.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "MIT", "ODbL-1.0", "Public Domain")
)
"""The terms under which audio, or speech made from text, is published again: anybody may, for any purpose. Everything
else is closed: terms that forbid commerce or changes (NC, ND), terms unknown, mixed or given on request."""

# --- sounds --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acoustics:
    """Describes the room and the noise of a recording; `acoustics.apply` applies them to samples.

    Args:
        seed: seed of the noise and of the room's echo.
        snr_db: signal-to-noise ratio in dB; None adds no noise.
        reverb_s: reverberation time RT60 in seconds; 0 is a dry sound.
        gain_db: change of level in dB.
        telephone: keep only what lies below 4 kHz, as a recording made at 8 kHz does.
    """

    seed: int
    snr_db: float | None = None
    reverb_s: float = 0.0
    gain_db: float = 0.0
    telephone: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """Names a stretch of an audio file: seconds `start` to `end` (None: to its end).

    `name` is what the leakage proof calls the file; "" stands for its path.
    """

    path: str
    start: float = 0.0
    end: float | None = None
    acoustics: Acoustics | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Speech:
    """Names words to be spoken by the build's synthesizer.

    Args:
        text: what is said.
        voice: a voice of the synthesizer, e.g. "en-us+f3"; "" lets the plan draw one of the split's voices, and with
            it the rate and the pitch.
        rate: words per minute.
        pitch: 0 to 99, 50 being the voice's own.
        acoustics: the room and the noise.
    """

    text: str
    voice: str = ""
    rate: int = 165
    pitch: int = 50
    acoustics: Acoustics | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Names a note to be synthesized: a timbre of `musical_notes.TIMBRES`, MIDI pitch and velocity, seconds."""

    timbre: str
    pitch: int
    velocity: int
    seconds: float = 1.0
    acoustics: Acoustics | None = None


Sound = Recording | Speech | Note

# --- items ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fact:
    """Holds one known fact about an item: the answer to one task. Each fact becomes one row.

    Args:
        task: code of `llaso_common.tasks.TASKS`.
        target: the reference answer; for a closed set, one of `choices`.
        choices: the closed set, in its natural order; empty for open answers, and for the labels of the task itself
            if it has any.
        granularity: which variant of the task, e.g. "coarse", "fine", "number"; also picks the instruction file
            `TASK.granularity.txt` if there is one.
        instruction: what is asked, if the item brings its own question (AQA); "" draws a template.
        input: the text to work on: what the spoken question is about (AQA), or the sentence of the recording if
            the task can also be asked of text. It makes the format `audio_text` possible.
        modality: the only format this fact may take; "" draws one of those possible.
        corpora: the corpora it goes into; empty follows the rule in `corpus_plan.corpora_of`.
        messages: a whole conversation, as (role, parts), each part a text or None for the item's next sound; its last
            part is `target`. Empty asks one question.
    """

    task: str
    target: str
    choices: tuple[str, ...] = ()
    granularity: str = ""
    instruction: str = ""
    input: str = ""
    modality: str = ""
    corpora: tuple[str, ...] = ()
    messages: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    @property
    def offered(self) -> tuple[str, ...]:
        """The labels to choose from: those of the fact, else those of its task."""
        return self.choices or TASKS[self.task].labels

    def fault(self) -> str:
        """Say what is wrong with the fact by itself, or ""; the target is not quoted."""
        if self.task not in TASKS:
            return f"unknown task {self.task!r}"
        task = TASKS[self.task]
        if not self.target.strip():
            return f"{self.task}: empty target"
        if self.offered and self.target not in self.offered:
            return f"{self.task}: label is not among {', '.join(self.offered)}"
        number = task.answer == "number" or self.granularity == "number"
        if task.answer == "closed" and not number and not self.offered:
            return f"{self.task}: no choices for a closed set"
        if number and not task.holds(self.target):
            low, high = task.numbers or (0, 0)
            return f"{self.task}: not a number from {low:g} to {high:g}"
        return ""


@dataclass(frozen=True, slots=True)
class Item:
    """Holds one recording, or one text to speak, with everything the corpus says about it.

    Args:
        id: unique within the source and stable over rebuilds; letters, digits and `._-/`.
        facts: the tasks it can serve.
        sound: what is heard; several sounds are joined with a short pause. Empty for text-only items, whose
            instruction and input are spoken by the build.
        apart: keep several sounds as clips of their own instead.
        speaker: who speaks, unique within the source; for a synthetic voice leave it empty.
        sentence: what is said, or asked; items with equal sentences never stand in both training and evaluation
            (unless the source declares sentences as `shared`).
        split: "train", "validation" or "test" if the corpus or the source decides it; "" lets the plan draw by
            speaker.
        where: file and line it was read from, for those facts of it that have to be rejected.
        joins: the sentences of the items that it joins, if it is made of several: none of them stands in both, either.
    """

    id: str
    facts: tuple[Fact, ...]
    sound: tuple[Sound, ...] = ()
    speaker: str = ""
    sentence: str = ""
    split: str = ""
    where: str = ""
    apart: bool = False
    joins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """Names something in the corpus that cannot be used: where and why. Rejects are listed and counted.

    Args:
        where: file and line, with the offending value if it may be anything.
        reason: why, in one of few wordings.
    """

    where: str
    reason: str


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# --- sources -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Declares one corpus.

    Args:
        name: short name, also the module's.
        title: the corpus's full name.
        license: SPDX id, or the corpus's own name for its terms.
        homepage: where it comes from.
        tasks: codes of the tasks it serves.
        layout: its public folder layout, as a person would draw it; shown when a folder does not fit.
        needs: glob patterns, each of which must match something below the root; "a|b" is either of two.
        read: yields the items of a root folder.
        expected: instances the paper (or the corpus itself) counts, by task.
        options: further arguments of `read`.
        shared: what training and evaluation share by the nature of the corpus: "sentence" if all speakers say
            the same few prompts, "speaker" if the task is to name known speakers.
        benchmark: rows that the paper's benchmark takes from it, by task: the weights of the evaluation's quotas.
        eval_share: the part of the speakers held out for evaluation if the corpus names no test split.
        synthetic: True if the source itself is made by synthesis.
        root: the folder it lies in; set by `at`.
        manifests: the files that list its rows, of a block of the user's own data; a build does not go on once their
            contents have changed.
    """

    name: str
    title: str
    license: str
    homepage: str
    tasks: tuple[str, ...]
    layout: str
    needs: tuple[str, ...]
    read: Callable[..., Iterator[Item | Reject]]
    expected: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    benchmark: Mapping[str, int] = field(default_factory=dict)
    eval_share: float = 0.05
    synthetic: bool = False
    root: Path | None = None
    manifests: tuple[Path, ...] = ()

    def at(self, root: str | Path, **options: Any) -> Source:
        """Return the same source, reading the folder `root` with further arguments for `read`."""
        return replace(self, root=Path(root).absolute(), options={**self.options, **options})

    @property
    def redistributable(self) -> bool:
        """Tell whether its audio may be published again."""
        return self.license in OPEN_LICENSES

    def items(self) -> Iterator[Item | Reject]:
        """Yield everything below the root; a faulty fact is a `Reject`, apart from the item it belongs to.

        Raises:
            ValueError: the folder is missing or laid out otherwise (the message shows both layouts), or an entry of a
            file lacks a field or is none.
        """
        if self.root is not None and (fault := self.layout_fault()):
            raise ValueError(fault)
        try:
            for found in self.read(self.root or Path(), **self.options):
                faults = [fact.fault() for fact in found.facts] if isinstance(found, Item) else []
                if not isinstance(found, Item) or not any(faults):
                    yield found
                    continue
                for fact, fault in zip(found.facts, faults, strict=True):
                    if fault:
                        yield Reject(f"{found.where or found.id} ({fact.target})", fault)
                if good := tuple(fact for fact, fault in zip(found.facts, faults, strict=True) if not fault):
                    yield replace(found, facts=good)
        except (KeyError, TypeError, AttributeError) as error:
            wrong = f"has no {error}" if isinstance(error, KeyError) else f"is of another kind ({error})"
            raise ValueError(
                f"{self.name}: {self.root}: an entry {wrong}; is this another version of {self.title}? "
                f"Expected\n{self.layout}"
            ) from error

    def speaker_of(self, item: Item) -> str:
        """Return the item's speaker with the source's name before it, unless the name already says "x:y"."""
        return item.speaker if ":" in item.speaker or not item.speaker else f"{self.name}:{item.speaker}"

    def card(self) -> dict[str, Any]:
        """Return what a dataset card says of this source."""
        return {
            "title": self.title,
            "license": self.license,
            "redistributable": self.redistributable,
            "homepage": self.homepage,
            "synthetic": self.synthetic,
            "shared": list(self.shared),
            "expected": dict(self.expected),
            **({"revision": self.options["revision"]} if self.options.get("revision") else {}),
        }

    def layout_fault(self) -> str:
        """Say what is wrong with the root folder, the expected layout and what was found, or ""."""
        assert self.root is not None
        if not self.root.is_dir():
            return f"{self.name}: no such folder: {self.root}. Expected {self.title}, laid out as\n{self.layout}"
        matched = self._matched(self.root)
        missing = [need.replace("|", " or ") for need, path in matched.items() if path is None]
        if not missing:
            pointer = next((path for path in matched.values() if path and _is_lfs_pointer(path)), None)
            return f"{self.name}: {pointer} is a Git LFS pointer, not the file: run `git lfs pull`" if pointer else ""
        some = sorted(itertools.islice(self.root.iterdir(), 12))
        found = ", ".join(path.name + "/" * path.is_dir() for path in some) or "an empty folder"
        fitting = next((path for path in some if path.is_dir() and all(self._matched(path).values())), None)
        return (
            f"{self.name}: {self.root} has another layout: nothing matches {', '.join(missing)}.\n"
            f"Expected {self.title}, laid out as\n{self.layout}\nFound: {found}"
            + (f"\n{fitting} is laid out so: name that folder" if fitting else "")
        )

    def _matched(self, folder: Path) -> dict[str, Path | None]:
        """Return for each of `needs` something below a folder that matches it, or None."""
        return {
            need: next((path for way in need.split("|") for path in folder.glob(way)), None) for need in self.needs
        }


def _is_lfs_pointer(path: Path) -> bool:
    """Tell whether a file is a Git LFS pointer in place of the file itself."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def names() -> list[str]:
    """List the known sources, one module each."""
    package = importlib.import_module("dataset_scripts.sources")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def load(name: str) -> Source:
    """Return the declaration in `sources/<name>.py`.

    Raises:
        ValueError: there is no such source; the message says the nearest and lists all there are.
    """
    if name not in names():
        raise ValueError(f"no source {name!r}; {nearest(name, names())}there are {', '.join(names())}")
    return importlib.import_module(f"dataset_scripts.sources.{name}").SOURCE


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean x? " with the known word nearest to `word`; "" if none is near."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}? " if close else ""
