"""Questions made from transcripts by rule: answers are right, yes and no balanced, and a build carries them."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from dataset_scripts import made_questions, sources_file
from dataset_scripts.made_questions import Vocabulary, made, split_clauses, split_words
from dataset_scripts.sources.base import Fact, Item
from dataset_scripts.validate import validate
from eval_suite.generate import generate
from eval_suite.score import score_rows
from llaso.cli import main
from llaso_common.tasks import PAPER_TASKS, TASKS, task_of

ALL = list(made_questions.RULES)
PEOPLE = ("the doctor", "my neighbour", "a teacher", "her brother", "the captain", "an engineer", "our cousin")
DEEDS = ("painted", "carried", "repaired", "forgot", "bought", "noticed", "watched", "borrowed")
THINGS = ("bridge", "window", "garden", "violin", "hammer", "kettle", "carpet", "ladder", "basket", "mirror")
JOINS = ("and", "because", "while", "but")


def sentence(chance: random.Random) -> str:
    """Return one or two clauses of the words above."""
    clauses = [
        f"{chance.choice(PEOPLE)} {chance.choice(DEEDS)} the {chance.choice(THINGS)}"
        for _ in range(chance.randint(1, 2))
    ]
    return f" {chance.choice(JOINS)} ".join(clauses)


@pytest.fixture(scope="module")
def asked() -> list[tuple[str, Fact]]:
    """All questions about 1,500 transcripts, each with its transcript."""
    chance = random.Random(0)
    texts = [sentence(chance) for _ in range(1500)]
    known = Vocabulary.of(texts)
    with TASKS.scope():
        TASKS.declare(made_questions.TASKS_MADE.values(), "the test")
        found = [
            (text, fact)
            for number, text in enumerate(texts)
            for fact in made(f"clip-{number}", text, dict.fromkeys(ALL, 1.0), known)
        ]
        assert not any(fact.fault() for _, fact in found)
    return found


def word_in(instruction: str) -> str:
    return instruction.split('"')[1]


def test_every_answer_is_right(asked):
    counts = Counter(fact.task for _, fact in asked)
    assert counts["WORDS"] == 1500 and all(counts[code] > 500 for code in ALL)
    for text, fact in asked:
        words = text.split()
        if fact.task == "WORDS":
            assert int(fact.target) == len(words)
        elif fact.task == "SAID":
            assert (fact.target == "yes") == (word_in(fact.instruction) in words)
        elif fact.task == "SPOT":
            assert len(set(fact.choices)) == 4 and [word for word in fact.choices if word in words] == [fact.target]
        elif fact.task == "AFTER":
            assert f" {word_in(fact.instruction)} {fact.target} " in f" {text} "
            assert words.count(word_in(fact.instruction)) == 1
        else:
            assert f" {fact.target} " in f" {text} " and fact.target != text
            assert word_in(fact.instruction) in fact.target.split()
            assert not set(fact.target.split()) & set(JOINS)
        assert fact.input == text  # what is said, written, for the format audio_text


def test_yes_and_no_are_balanced_and_the_question_does_not_tell(asked):
    """Over all, and word by word: who only reads the question is right half of the time."""
    answers = [(word_in(fact.instruction), fact.target) for _, fact in asked if fact.task == "SAID"]
    assert 0.46 < sum(target == "yes" for _, target in answers) / len(answers) < 0.54
    by_word = defaultdict(list)
    for word, target in answers[::2]:
        by_word[word].append(target)
    most = {word: Counter(targets).most_common(1)[0][0] for word, targets in by_word.items()}
    guessed = [most.get(word, "no") == target for word, target in answers[1::2]]
    assert sum(guessed) / len(guessed) < 0.57
    often = Counter(fact.target for _, fact in asked if fact.task == "SPOT")
    offered = Counter(word for _, fact in asked if fact.task == "SPOT" for word in fact.choices)
    shares = [often[word] / offered[word] for word in offered if offered[word] > 100]
    assert 0.15 < min(shares) and max(shares) < 0.35  # one of four, whatever the word


@pytest.mark.parametrize(
    ("text", "code", "wanted"),
    [
        ("Hello, World!", "WORDS", "2"),
        ("well - that's it", "WORDS", "3"),
        ("twenty-one people", "WORDS", "2"),
        ("Please enter your password followed by the pound key.", "WORDS", "9"),
    ],
)
def test_words_are_counted_as_they_are_written(text, code, wanted):
    (fact,) = made("x", text, {code: 1.0}, Vocabulary.of([text]))
    assert fact.target == wanted


def test_clauses_end_at_punctuation_and_before_conjunctions():
    assert split_clauses("Leave it, please. the doctor came and my neighbour left") == [
        ["leave", "it"], ["please"], ["the", "doctor", "came"], ["my", "neighbour", "left"],
    ]  # fmt: skip
    assert split_words("“I’m here,” she said…") == ["i’m", "here", "she", "said"]


def test_what_cannot_be_asked_is_not_asked():
    """No word worth asking for, no transcript to take an unsaid word from, or a word too much like a said one."""
    assert [fact.task for fact in made("x", "it is on", dict.fromkeys(ALL, 1.0), Vocabulary.of(["it is on"]))] == [
        "WORDS"
    ]
    alone = Vocabulary.of(["gardens bloom", "gardener blooming"])
    assert not {"SAID", "SPOT"} & {f.task for f in made("x", "gardens bloom", dict.fromkeys(ALL, 1.0), alone)}
    assert not list(made("x", " ".join(["word"] * 201), {"WORDS": 1.0}, alone))


def write_speech(folder: Path, count: int = 60) -> Path:
    """Write a manifest of hum with transcripts, twenty speakers, genders and ages, and its sources file."""
    folder.mkdir(parents=True)
    chance, rows = random.Random(1), []
    for number in range(count):
        time = np.arange(4000 + 100 * number) / 8000
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(2 * np.pi * (200 + 5 * number) * time), 8000)
        rows.append(
            {
                "audio": f"{number}.wav", "text": sentence(chance) + f" {number}", "speaker": f"s{number % 20}",
                "gender": ("male", "female")[number % 2], "age": 6 + number % 20,
            }
        )  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "age.txt").write_text("How old is the speaker, in years?\n")
    (folder / "sources.yaml").write_text(
        "sources:\n"
        "  mine: {manifest: rows.jsonl, tasks: {ASR: text, SGC: gender, AGE: age}, eval_share: 0.4,\n"
        "         questions: [WORDS, SAID, SPOT, AFTER, ABOUT], license: CC0-1.0}\n"
        "tasks:\n"
        "  AGE: {kind: number, bounds: [0, 110], instructions: age.txt}\n"
        "voices: {train: [en-us+f1], validation: [en-us+f2], test: [en+f4]}\n"
        "eval_rows: 200\nvalidation_rows: 20\n"
    )
    return folder / "sources.yaml"


def rows_of(corpus: Path) -> list[dict]:
    return [row for file in sorted(corpus.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_a_build_from_a_manifest_of_transcripts_has_them_in_all_three_formats(tmp_path, capsys):
    file = write_speech(tmp_path / "mine")
    built = {}
    for corpus in ("instruct", "eval"):
        built[corpus] = tmp_path / f"llaso-{corpus}"
        command = ["data", "build", corpus, "--sources", str(file), "--out", str(built[corpus])]
        assert main([*command, "--clips", str(tmp_path / "clips")]) == 0
        assert validate(built[corpus])["bad"] == 0
    rows = [row for folder in built.values() for row in rows_of(folder)]
    assert {row["task"] for row in rows} == {"ASR", "SGC", "AGE", *ALL}
    assert {row["modality"] for row in rows if row["task"] == "SAID"} == {"text_audio", "audio_text", "audio"}
    for row in rows:
        if row["task"] in ALL:
            assert task_of(row).code == row["task"] not in PAPER_TASKS
            texts = [part["text"] for part in row["messages"][0]["content"] if part["type"] == "text"]
            assert {"text_audio": 1, "audio_text": 1, "audio": 0}[row["modality"]] == len(texts)
            assert not any("{" in text for text in texts)
        if row["modality"] == "audio_text":
            assert row["speaker"] == "" and row["voice"]  # the question is spoken, the recording is not heard

    answers = tmp_path / "answers"
    right = {row["id"]: row["target"] for row in rows_of(built["eval"])}
    generate(lambda requests: [right[each.row.id] for each in requests], str(built["eval"]), answers, progress=False)
    scored = score_rows(answers, protocol="strict", system="oracle", resamples=20).content
    ranked = {name: entry["metrics"] for name, entry in scored["tasks"].items()}
    assert {"SAID", "SPOT", "AFTER", "WORDS"} <= ranked.keys()
    for name in ("SAID", "SPOT", "AFTER"):
        assert ranked[name]["accuracy"]["value"] == 1.0


def test_the_order_of_a_manifest_decides_nothing_and_shares_are_kept(tmp_path):
    file = write_speech(tmp_path / "mine", 200)
    text = file.read_text().replace("[WORDS, SAID, SPOT, AFTER, ABOUT]", "{SAID: 1.0, WORDS: 0.25}")
    file.write_text(text)

    def facts() -> dict[str, tuple[Fact, ...]]:
        with TASKS.scope():
            (source,) = sources_file.read(file).sources
            return {item.id: item.facts for item in source.items() if isinstance(item, Item)}

    found = facts()
    manifest = file.parent / "rows.jsonl"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[::-1]))
    assert facts() == found
    counts = Counter(fact.task for each in found.values() for fact in each)
    assert counts["SAID"] == 200 and 30 < counts["WORDS"] < 70 and counts["AFTER"] == 0


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("[SAYD]", "no rule makes 'SAYD'; did you mean SAID"),
        ("{SAID: 2}", "SAID: 2 is no share"),
        ("SAID", "questions: 'SAID' is not a list of questions"),
        ("[SAID], tasks: {SGC: gender}", "made from transcripts"),
        ("[ASR]", "no rule makes 'ASR'"),
    ],
)
def test_questions_that_cannot_be_made_are_named(tmp_path, said, message):
    file = write_speech(tmp_path / "mine", 4)
    text = file.read_text().replace("[WORDS, SAID, SPOT, AFTER, ABOUT]", said)
    file.write_text(
        text.replace("tasks: {ASR: text, SGC: gender, AGE: age}, ", "") if "SGC: gender}" in said else text
    )
    with pytest.raises(ValueError, match="sources.yaml: .*" + message), TASKS.scope():
        sources_file.read(file)


def test_a_task_of_ones_own_may_not_have_the_code_of_a_made_one(tmp_path):
    file = write_speech(tmp_path / "mine", 4)
    file.write_text(file.read_text().replace("  AGE: {kind", "  SAID: {kind").replace(", AGE: age", ""))
    with pytest.raises(ValueError, match="SAID: `questions` makes a task of this code"), TASKS.scope():
        sources_file.read(file)
