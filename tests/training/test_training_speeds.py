"""`data.speeds` plays recordings to transcribe faster or slower, the same in a resumed run.

How speeds are drawn is tested in `test_training_reading.py`.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny_training import curve, interrupted_after, row, save_backbones, save_corpus, tiny_recipe

from llaso.training.recipe.recipe import DataChoice, load_recipe
from llaso.training.rows.collator import RowEncoder
from llaso.training.rows.corpora import log_mels, open_corpus
from llaso.training.rows.training_rows import plan_of
from llaso.training.run.train import train
from modeling_llaso.conversion import new_processor
from modeling_llaso.processing_llaso import LlasoProcessor

SPEEDS = [0.8, 1.0, 1.25]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speeds")
    save_backbones(folder)
    rows = [row(number) for number in range(24)]
    save_corpus(folder / "corpus", {"train": rows, "validation": rows[:2]})
    return folder


@pytest.fixture(scope="module")
def processor(root: Path) -> LlasoProcessor:
    return new_processor(root / "encoder", root / "llm", audio_padding="trim")


def tone(hertz: float, seconds: float, words: int = 1) -> dict:
    """A row to transcribe whose recording is one tone, and whose transcript has so many words."""
    text = " ".join(itertools.islice(itertools.cycle(["one", "two"]), words))
    file = io.BytesIO()
    time = np.arange(int(16_000 * seconds)) / 16_000
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * hertz * time), 16_000, format="FLAC")
    example = row(0) | {"audio": [{"bytes": file.getvalue(), "path": "tone.flac"}], "target": text}
    example["messages"][1]["content"] = [{"type": "text", "text": text}]
    return example


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.25])
def test_a_faster_recording_is_shorter_and_higher(processor, speed):
    """As a recording of the tone that is as much higher and shorter in the first place."""
    ((tokens, played),) = log_mels(tone(400, 3.0), processor, speed)
    ((expected_tokens, expected),) = log_mels(tone(400 * speed, 3.0 / speed), processor)
    assert tokens == expected_tokens
    assert played[0].shape == expected[0].shape
    inner = slice(10, -10)  # the resampling filter blurs the ends
    torch.testing.assert_close(played[0][:, inner], expected[0][:, inner], rtol=0, atol=0.05)


def test_speed_changes_the_audio_and_nothing_else(processor):
    encode = RowEncoder(processor, 2048)
    plain, fast = encode(row(0)), encode(row(0) | {"speed": 1.25})
    mark = processor.audio_token_id
    assert plain.windows[0].shape[1] == pytest.approx(1.25 * fast.windows[0].shape[1], abs=1)
    assert torch.equal(plain.input_ids[plain.input_ids != mark], fast.input_ids[fast.input_ids != mark])
    assert torch.equal(plain.labels[plain.labels != -100], fast.labels[fast.labels != -100])
    assert (fast.input_ids == mark).sum() < (plain.input_ids == mark).sum()


@pytest.mark.parametrize("align", ["some", "all"])
def test_a_row_that_cannot_be_aligned_at_its_speed_keeps_its_own(processor, align, caplog):
    """At double speed there are too few vectors for the transcript, at its own speed just enough."""
    encode = RowEncoder(processor, 2048, align=align)
    rows = (tone(400, 1.0, words=number) for number in range(1, 200))
    tight = next(example for example in rows if fits(encode, example) and not fits(encode, example, 2.0))
    plain, fast = encode(tight), encode(tight | {"speed": 2.0})
    assert torch.equal(fast.windows[0], plain.windows[0])
    assert torch.equal(fast.transcript, plain.transcript)
    assert not caplog.records


def fits(encode: RowEncoder, example: dict, speed: float = 1.0) -> bool:
    """Whether a row's transcript can be aligned with its recording at a speed."""
    try:
        return encode._encode(example, speed).transcript is not None
    except ValueError:
        return False


def test_a_row_that_cannot_be_read_at_any_speed_is_named(processor):
    broken = row(3) | {"audio": [{"bytes": b"not a recording", "path": "x.flac"}], "speed": 0.9}
    with pytest.raises(ValueError, match="row asr-0-0003"):
        RowEncoder(processor, 2048)(broken)


def test_a_resumed_run_plays_the_same_speeds(root, tmp_path):
    def run(out: Path, **changes) -> list:
        train(tiny_recipe(root, "unused", **changes) | {"out": str(out)})
        return curve(out)

    plain, played = run(tmp_path / "plain"), run(tmp_path / "played", data__speeds=SPEEDS)
    assert [step[1] for step in plain] != [step[1] for step in played]
    with interrupted_after(4):
        run(tmp_path / "resumed", data__speeds=SPEEDS)
    assert run(tmp_path / "resumed", data__speeds=SPEEDS) == played


def test_micro_batches_stay_within_max_tokens_at_the_slowest_speed(root, processor):
    tokens = 5 * max(open_corpus(DataChoice(str(root / "corpus")), processor).lengths)
    changes = {"batch__max_tokens": tokens, "batch__per_device": 8, "batch__accumulation": 1}
    recipe = load_recipe(tiny_recipe(root, "unused", data__speeds=[0.5, 1.0], **changes))
    corpus = open_corpus(recipe.data, processor)
    plan, encode = plan_of(recipe, corpus, world=1), RowEncoder(processor, 2048)
    natural = open_corpus(DataChoice(str(root / "corpus")), processor).lengths
    assert all(natural < corpus.lengths)
    several = 0
    for (batch,) in plan.steps(0, 0):
        longest = max(len(encode(corpus[number] | {"speed": 0.5}).input_ids) for number in batch)
        assert len(batch) == 1 or longest * len(batch) <= tokens
        several += len(batch) > 1
    assert several > 0


def test_a_slower_recording_that_needs_another_window_is_planned_with_it(root, tmp_path):
    """In `full`, 29 seconds are one window, and at 0.9 of the speed they are two; 600 seconds stay as they are."""
    processor = new_processor(root / "encoder", root / "llm", audio_padding="full")
    processor.max_audio_len = 600
    rows = [row(number) | {"duration": seconds} for number, seconds in enumerate((10.0, 29.0, 600.0))]
    folder = str(save_corpus(tmp_path / "corpus", {"train": rows}))
    natural = open_corpus(DataChoice(folder), processor).lengths
    slowed = open_corpus(DataChoice(folder, speeds=(0.9, 1.0)), processor).lengths
    window = processor.count_audio_tokens(16_000)
    assert (slowed - natural).tolist() == [0, window, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data__speeds": SPEEDS, "compute__encoder_cache_gb": 1},
            "`data.speeds` plays them at others; set compute.enc",
        ),
        ({"data__speeds": []}, "`data.speeds` is empty; \\[1.0\\] plays"),
        ({"data__speeds": [1.0, 3.0]}, "`data.speeds` is 3.0, but must be between 0.5 and 2"),
        ({"data__speeds": [float("nan")]}, "`data.speeds` is nan, but must be"),
        ({"data__speeds": ["fast"]}, "`data.speeds` is a number, not 'fast'"),
    ],
)
def test_speeds_that_cannot_be_are_refused(root, changes, words):
    with pytest.raises(ValueError, match=words):
        load_recipe(tiny_recipe(root, "unused", **changes))
