"""A small spoken world made on the spot: what `llaso quickstart` trains on if no corpus is on disk.

People put things into rooms, give orders to a house and to a robot, read out digits; instruments play notes. Speech is
synthesized in many voices, accents, rates, pitches, rooms and noises. Voices and sentences of training, validation and
evaluation have nothing in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .. import acoustics, draw, musical_notes, synthesize
from .base import Fact, Item, Note, Source, Speech

PEOPLE = ("tom", "anna", "peter", "lucy", "mark", "sarah", "david", "emma")
DEEDS = ("put", "left", "found", "saw", "hid", "lost")
COLOURS = ("red", "blue", "green", "black", "white", "yellow")
THINGS = ("ball", "cup", "book", "key", "box", "lamp", "hat", "coin", "phone", "bottle")
PLACES = ("kitchen", "garden", "office", "bedroom", "garage", "cellar")
DEVICES = ("light", "fan", "heater", "radio")
MUSIC = ("jazz", "rock", "folk", "piano")
CITIES = ("paris", "london", "rome", "berlin")
MACHINES = ("robot", "rover", "drone")
MOVES = ("go", "turn", "move", "look")
COMMANDS = ("left", "right", "up", "down", "forward", "back")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

ACCENTS = ("american", "received pronunciation", "scottish", "caribbean")
GENDERS = {"female": synthesize.FEMALE, "male": synthesize.MALE}
HELD_OUT_VOICES = {
    "test": ("f3", "belinda", "Alicia", "m3", "m7", "robert"),
    "validation": ("f5", "aunty", "m5", "john"),
}
"""Variants kept from training, of both genders; what is in neither list trains."""
SHARE = {"test": 0.12, "validation": 0.06}
"""Part of the sentences held out."""
OF_VOICE = 0.4
"""Part of the utterances whose voice, rather than what it says, is asked about."""
VOICE_TASKS = {"SGC": 3, "AC": 2, "PR": 1}
"""How often each is asked. A label is one token beside a PR answer's thirty, and every token weighs the same."""
ASR_AGAIN = 0.3
"""Part of the utterances that are to be transcribed in Instruct too."""
PITCHES = (36, 84)
"""MIDI; three octaves and a sixth, where every timbre has its fundamental in the mel bands."""
NOTE_VELOCITIES = (50, 75, 100, 127)
QUESTIONS = ("where is the {thing}", "what colour is the {thing}", "who was it", "what is in the {place}")
WRITTEN = "text_audio"
"""The format of all tasks but AQA: their spoken instructions would be more speech than all the rest."""
AQA_FORMATS = ("text_audio", "audio_text", "audio")


def voices() -> dict[str, list[str]]:
    """Return the synthetic voices of each split: every variant of the split on every accent."""
    held = {variant for variants in HELD_OUT_VOICES.values() for variant in variants}
    training = tuple(variant for variant in synthesize.FEMALE + synthesize.MALE if variant not in held)
    variants = {"train": training, **HELD_OUT_VOICES}
    return {split: synthesize.voices(ACCENTS, chosen) for split, chosen in variants.items()}


def read(root: Path, *, utterances: int, notes: int, questions: int, seed: int, real: bool) -> Iterator[Item]:
    """Yield items by their number: each is a function of the seed and its own number.

    Args:
        root: not used; there is nothing on disk.
        utterances: sentences to be spoken.
        notes: musical notes to be played.
        questions: stories with a question.
        seed: of every draw.
        real: there are recordings of people beside this source, so that telling synthetic speech is a task.
    """
    pools = voices()
    for number in range(utterances):
        yield _utterance(f"utterance-{number:06d}", seed, real, pools)
    for number in range(notes):
        yield _note(f"note-{number:06d}", seed)
    for number in range(questions):
        yield _question(f"question-{number:06d}", seed)


def _utterance(id: str, seed: int, real: bool, pools: dict[str, list[str]]) -> Item:
    """Return a sentence in some voice, with its transcript and one more fact."""
    kind = draw.weighted(seed, id, "kind", {"story": 4, "asked": 1, "order": 3, "robot": 2, "digits": 2})
    said, fact = "", None
    if kind in ("story", "asked"):
        question, story, _ = _story(seed, id)
        sentence, said = story, f"{question} {story}" if kind == "asked" else story
    elif kind == "order":
        sentence, fact = _order(seed, id)
    elif kind == "robot":
        command, steps = draw.pick(seed, id, "command", COMMANDS), draw.pick(seed, id, "steps", DIGITS)
        machine, move = draw.pick(seed, id, "machine", MACHINES), draw.pick(seed, id, "move", MOVES)
        sentence, fact = f"{machine} {move} {command} {steps} steps", Fact("SCR", command, modality=WRITTEN)
    else:
        count = 2 + draw.integer(seed, id, "count") % 3
        sentence = " ".join(draw.pick(seed, id, f"digit {place}", DIGITS) for place in range(count))
        fact = Fact("SSD", "fake", choices=("real", "fake")) if real else None
    said = said or sentence
    split = _split(sentence, seed)
    voice = draw.pick(seed, id, "voice", pools[split])
    # What is said must not tell what will be asked, or the instruction need not be read.
    if fact is None or draw.unit(seed, id, "of voice") < OF_VOICE:
        fact = _of_voice(draw.weighted(seed, id, "task", VOICE_TASKS), voice, said)
    again = draw.unit(seed, id, "again") < ASR_AGAIN
    transcript = Fact("ASR", said, modality=WRITTEN, corpora=("align", "instruct", "eval")[:: 1 if again else 2])
    # Real recordings must differ in the voice alone, not in rate, level or noise.
    telephone = 1.0 if kind == "digits" else 0.2
    speech = Speech(
        said,
        voice,
        rate=round(draw.between(seed, id, "rate", 160, 240)),
        pitch=round(draw.between(seed, id, "pitch", 35, 65)),
        acoustics=acoustics.drawn(seed, id, snr_db=(15, 45), reverb_s=(0.1, 0.3), telephone=telephone),
    )
    return Item(id, (transcript, fact), (speech,), sentence=sentence, split=split)


def _story(seed: int, id: str) -> tuple[str, str, str]:
    """Return a question, the story it is about, and the answer."""
    person, deed = draw.pick(seed, id, "person", PEOPLE), draw.pick(seed, id, "deed", DEEDS)
    colour, thing = draw.pick(seed, id, "colour", COLOURS), draw.pick(seed, id, "thing", THINGS)
    place = draw.pick(seed, id, "place", PLACES)
    answers = (place, colour, person, thing)
    question, answer = draw.pick(seed, id, "question", tuple(zip(QUESTIONS, answers, strict=True)))
    story = f"{person} {deed} the {colour} {thing} in the {place}"
    return question.format(thing=thing, place=place), story, answer


def _order(seed: int, id: str) -> tuple[str, Fact]:
    """Return an order to a smart home: its sentence, and its intent or the things it names."""
    thing, person = draw.pick(seed, id, "thing", THINGS), draw.pick(seed, id, "person", PEOPLE)
    device, place = draw.pick(seed, id, "device", DEVICES), draw.pick(seed, id, "place", PLACES)
    music, city = draw.pick(seed, id, "music", MUSIC), draw.pick(seed, id, "city", CITIES)
    hour, colour = draw.pick(seed, id, "hour", DIGITS), draw.pick(seed, id, "colour", COLOURS)
    orders = {
        "switch on": (f"turn on the {colour} {device} in the {place}", {"device": device, "place": place}),
        "switch off": (f"turn off the {colour} {device} in the {place}", {"device": device, "place": place}),
        "set alarm": (f"set the alarm in the {place} for {hour}", {"place": place, "time": hour}),
        "play music": (f"play some {music} music for {person} in the {place}", {"music": music, "person": person}),
        "ask weather": (f"tell {person} the weather in {city} for {hour} days", {"person": person, "city": city}),
        "send message": (f"send {person} a message about the {colour} {thing}", {"person": person, "thing": thing}),
    }
    intent = draw.pick(seed, id, "intent", tuple(orders))
    sentence, slots = orders[intent]
    entities = ", ".join(f"[{name} : {value}]" for name, value in slots.items())
    whole = draw.unit(seed, id, "whole") < 0.5
    return sentence, Fact("IP", intent, modality=WRITTEN) if whole else Fact("EE", entities, modality=WRITTEN)


def _of_voice(task: str, voice: str, said: str) -> Fact:
    """Return what can be asked of any utterance: who speaks, in which accent, in which sounds."""
    if task == "PR":
        return Fact("PR", synthesize.phonemes(said, voice), modality=WRITTEN)
    language, _, variant = voice.partition("+")
    if task == "SGC":
        return Fact(
            "SGC",
            next(name for name, found in GENDERS.items() if variant in found),
            choices=tuple(GENDERS),
            modality=WRITTEN,
        )
    return Fact(
        "AC", next(name for name in ACCENTS if synthesize.ACCENTS[name] == language), choices=ACCENTS, modality=WRITTEN
    )


def _note(id: str, seed: int) -> Item:
    """Return a note of some instrument: what plays it, and how high."""
    timbre = draw.pick(seed, id, "timbre", tuple(musical_notes.TIMBRES))
    pitch = PITCHES[0] + draw.integer(seed, id, "pitch") % (PITCHES[1] - PITCHES[0] + 1)
    velocity = draw.pick(seed, id, "velocity", NOTE_VELOCITIES)
    played = Note(timbre, pitch, velocity, 0.6, acoustics.drawn(seed, id, snr_db=(20, 45), reverb_s=(0.1, 0.4)))
    facts = (
        Fact("PP", str(pitch), modality=WRITTEN),
        Fact("IC", timbre, choices=tuple(musical_notes.TIMBRES), modality=WRITTEN),
    )
    return Item(id, facts, (played,), split=_split(id, seed))


def _question(id: str, seed: int) -> Item:
    """Return a story and a question about it, in one of the three formats."""
    question, story, answer = _story(seed, id)
    modality = draw.pick(seed, id, "modality", AQA_FORMATS)
    fact = Fact("AQA", answer, instruction=question, input=story, modality=modality)
    return Item(id, (fact,), sentence=story, split=_split(story, seed))


def _split(sentence: str, seed: int) -> str:
    """Return the split of a sentence, the same wherever it is said."""
    point = draw.unit(seed, sentence, "split")
    if point < SHARE["test"]:
        return "test"
    return "validation" if point < SHARE["test"] + SHARE["validation"] else "train"


SOURCE = Source(
    name="quickstart",
    title="LLaSO quickstart, a small spoken world",
    license="Apache-2.0",
    homepage="https://arxiv.org/abs/2508.15418",
    tasks=("ASR", "PR", "SGC", "AC", "SCR", "IP", "EE", "SSD", "AQA", "PP", "IC"),
    layout="nothing on disk: sentences are spoken and notes are played when the corpora are built",
    needs=(),
    read=read,
    options={"utterances": 6000, "notes": 700, "questions": 1800, "seed": 0, "real": False},
    benchmark={"ASR": 300, "AQA": 150},
    synthetic=True,
)
