"""Makes a conversation from a fact: draws its format, instruction and voice, and decides what is spoken.

Takes an `Item` and one of its `Fact`s; gives the planned row, complete but for its audio, whose recipe it carries in
`clips`. Every choice is drawn by hash of the seed and the row's id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from llaso_common.schema import TASK_DEFINITION, after_transcript
from llaso_common.tasks import PAPER_TASKS, TASKS

from . import draw
from .instructions import Template, templates
from .row_items import transcript_of
from .sources.base import Acoustics, Fact, Item, Note, Recording, Sound, Source, Speech
from .task_forms import format_weights

RATES, PITCHES = (145, 190), (35, 65)
"""Words a minute and pitches that are drawn from for what the build speaks."""
LETTERS_PER_SECOND = 14.0
"""Letters that espeak-ng speaks in a second at 165 words a minute."""
MAX_SECONDS = 30.0
"""The longest row, unless the build is told otherwise."""
_KINDS: dict[str, type] = {"recording": Recording, "speech": Speech, "note": Note}


def row_id(source: Source, item: Item, fact: Fact) -> str:
    """Return the row's id: source, item and task (with the variant), e.g. "vctk/p225_001/AC.fine"."""
    return f"{source.name}/{item.id}/{fact.task}" + f".{fact.granularity}" * bool(fact.granularity)


def fault(item: Item, fact: Fact, max_seconds: float = MAX_SECONDS) -> str:
    """Say why a fact cannot be asked of its item, or "" (`Source.items` has checked the fact itself)."""
    if fact.messages and not item.sound:
        return f"{fact.task}: a conversation without audio"
    if not item.sound and not fact.instruction:
        return f"{fact.task}: neither a sound nor an instruction to speak"
    if formats(item, fact, max_seconds):
        return ""
    if formats(item, fact, math.inf):
        return f"{fact.task}: too long to be spoken in {max_seconds:g} s"
    return f"{fact.task}: cannot take the format {fact.modality!r}"


def formats(item: Item, fact: Fact, max_seconds: float = MAX_SECONDS) -> dict[str, float]:
    """Return the formats that a fact can take, with their weights.

    A whole conversation has the format that it is written in. A sound can follow a written or a spoken instruction; a
    written input can follow a spoken one. An item without a sound has its own question (or, in `text_audio`, its
    input) spoken, if that can be done in `max_seconds`; choices are read out before a sound if they leave it half
    of the time.
    """
    if fact.messages:
        written = any(part for role, parts in fact.messages if role != "assistant" for part in parts)
        return {"text_audio" if written else "audio": 1.0}
    weights = format_weights(fact.task)
    if not fact.input:
        weights.pop("audio_text", None)
        if not item.sound:
            weights.pop("text_audio", None)
    possible = {name: weight for name, weight in weights.items() if fact.modality in ("", name)}
    letters = max_seconds * LETTERS_PER_SECOND
    if item.sound:
        spoken = {"audio": 2 * sum(map(len, fact.offered))}
    else:
        spoken = {
            "text_audio": len(fact.input),
            "audio_text": len(fact.instruction),
            "audio": len(fact.instruction) + len(fact.input),
        }
    return {name: weight for name, weight in possible.items() if spoken.get(name, 0) <= letters}


def write(
    corpus: str,
    source: Source,
    item: Item,
    fact: Fact,
    split: str,
    seed: int,
    voices: Sequence[str],
    max_seconds: float = MAX_SECONDS,
    transcript_first: float = 0.0,
) -> dict[str, Any]:
    """Write the planned row of one fact.

    Args:
        corpus: align, instruct or eval.
        source, item, fact: where it comes from; `fault(item, fact, max_seconds)` must be "".
        split: train, validation or test.
        seed: of every draw.
        voices: the synthetic voices of this split.
        max_seconds: the longest row; a format in which the question takes longer to say is not drawn.
        transcript_first: share of the rows in which the answer follows the transcript of all that is heard, if that is
            known and is not itself the answer.

    Returns:
        The row's columns but `audio`, `duration`, `length` and `sha256`; the task's definition if it is not one of
        the paper's; and `clips`: for each audio part of the
        messages, in order, the list of sounds to join, as JSON.
    """
    id = row_id(source, item, fact)
    possible = formats(item, fact, max_seconds)
    if corpus == "align" and "text_audio" in possible:
        possible = {"text_audio": 1.0}  # alignment is written instruction and speech, nothing else
    modality = draw.weighted(seed, id, "format", possible)
    template = _template(corpus, fact, seed, id)
    choices = draw.shuffled(seed, id, "choices", fact.offered) if fact.offered else []
    instruction = fact.instruction or template.text.replace("{choices}", enumerate_choices(choices))
    voice = draw.pick(seed, id, "voice", voices) if voices else ""

    def spoken(text: str) -> Speech:
        rate = round(draw.between(seed, id, "rate", *RATES))
        return Speech(text, voice, rate, round(draw.between(seed, id, "pitch", *PITCHES)))

    sound = tuple(
        replace(spoken(part.text), acoustics=part.acoustics) if isinstance(part, Speech) and not part.voice else part
        for part in item.sound
    )

    user: list[dict[str, str | None]]
    heard: tuple[Sound, ...]
    if fact.messages:
        heard, user = sound, []
    elif modality == "text_audio":
        heard = sound or (spoken(fact.input),)
        user = [_text(instruction), _AUDIO]
    elif modality == "audio_text":
        heard = (spoken(instruction),)
        user = [_AUDIO, _text(fact.input)]
    elif sound:
        heard = (spoken(instruction), *sound)
        user = [_AUDIO]
    else:
        heard = (spoken(f"{fact.instruction} {fact.input}".strip()),)
        carried = draw.unit(seed, id, "carrier") < 0.5
        user = [_text(template.text), _AUDIO] if carried else [_AUDIO]
    said = transcript_of_all(heard, item, fact) if transcript_first else ""
    first = bool(said) and draw.unit(seed, id, "transcript first") < transcript_first
    answer = after_transcript(said, fact.target) if first else fact.target
    clips = [[part] for part in heard] if item.apart else [list(heard)]
    user += [_AUDIO] * (len(clips) - 1)
    worded = bool(fact.instruction or fact.messages)
    task = TASKS[fact.task]
    own = task.code not in PAPER_TASKS
    definition = {TASK_DEFINITION: json.dumps(task.record(), ensure_ascii=False)} if own else {}
    return {
        "id": id,
        "corpus": corpus,
        "task": fact.task,
        "category": task.category,
        "modality": modality,
        "source": source.name,
        "split": split,
        "messages": [
            {"role": role, "content": [_AUDIO if part is None else _text(part) for part in parts]}
            for role, parts in fact.messages
        ]
        or [{"role": "user", "content": user}, {"role": "assistant", "content": [_text(answer)]}],
        "target": fact.target,
        "choices": choices,
        "template_id": "" if worded else template.id,
        "style": "" if worded else template.style,
        "voice": " ".join(dict.fromkeys(part.voice for part in heard if isinstance(part, Speech))),
        "speaker": source.speaker_of(item) if set(sound) & set(heard) else "",
        "license": source.license,
        "clips": [[sound_to_json(part) for part in clip] for clip in clips],
    } | definition


def transcript_of_all(heard: Sequence[Sound], item: Item, fact: Fact) -> str:
    """Return the words of all sounds of a row, in their order.

    Args:
        heard: the sounds.
        item: whose recordings they are; its transcript is that of its recordings together.
        fact: what is asked; its `input`, if there is one, is what the recordings say.

    Returns:
        The words; "" if some are not known, or if they are what the task asks for.
    """
    if fact.messages or TASKS[fact.task].answer == "transcript":
        return ""
    known = fact.input or transcript_of(item.facts)
    words, recorded = list[str](), False
    for sound in heard:
        if isinstance(sound, Speech):
            words.append(sound.text)
        elif not known or not isinstance(sound, Recording):
            return ""
        elif not recorded:  # the transcript is of all of an item's recordings together
            words.append(known)
            recorded = True
    return " ".join(words)


def enumerate_choices(choices: Sequence[str]) -> str:
    """List choices in a sentence: "a or b", "a, b or c"."""
    return " or ".join(filter(None, (", ".join(choices[:-1]), *choices[-1:])))


def sound_to_json(sound: Sound) -> dict[str, Any]:
    """Return a sound as plain JSON, with its kind."""
    fields: dict[str, Any] = {"kind": type(sound).__name__.lower()}
    for name in sound.__slots__:  # dataclasses.asdict copies deeply, which a plan of millions feels
        fields[name] = getattr(sound, name)
    if sound.acoustics:
        fields["acoustics"] = asdict(sound.acoustics)
    else:
        del fields["acoustics"]
    if not fields.get("name", True):
        del fields["name"]
    return fields


def sound_from_json(value: Mapping[str, Any]) -> Sound:
    """Read a sound that `sound_to_json` wrote."""
    fields = dict(value)
    kind = _KINDS[fields.pop("kind")]
    if "acoustics" in fields:
        fields["acoustics"] = Acoustics(**fields["acoustics"])
    return kind(**fields)


_AUDIO: dict[str, str | None] = {"type": "audio", "text": None}


def _text(text: str) -> dict[str, str | None]:
    return {"type": "text", "text": text}


def _template(corpus: str, fact: Fact, seed: int, id: str) -> Template:
    """Draw an instruction: Align from its own eighteen, the other corpora from the task's twenty."""
    if corpus == "align":
        return draw.pick(seed, id, "template", templates("ASR", "align"))
    return draw.pick(seed, id, "template", templates(fact.task, fact.granularity))
