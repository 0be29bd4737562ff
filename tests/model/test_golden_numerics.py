"""The released numerics without the extra fixtures: `golden/README.md` says where the expected numbers come from.

Tolerances: logits 1e-3, mel and projected vectors 1e-5, losses and norms of gradients 1e-5 relative. Ids alone would
not do: a wrong stride, activation or resampler leaves many of them as they are, so the last test makes these mistakes
and sees that the numbers notice.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from support.golden_model import (
    CASES,
    measure_answer,
    measure_question,
    measure_training,
    read_recordings,
    weights,
    write_checkpoint,
    write_recordings,
)

from llaso_common.audio import read_audio
from modeling_llaso.conversion import from_official, read_tensors, to_official

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"mel": 1e-5, "projected": 1e-5, "logits": 1e-3, "generated logits": 1e-3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> SimpleNamespace:
    """The drawn checkpoint as our model, the recordings, and what is expected of them."""
    folder = tmp_path_factory.mktemp("golden")
    model, processor = from_official(write_checkpoint(folder / "checkpoint"))
    recordings = write_recordings(folder / "recordings")
    return SimpleNamespace(
        model=model,
        processor=processor,
        recordings=recordings,
        clips=read_recordings(recordings),
        tensors=load_file(GOLDEN / "expected.safetensors"),
        records=json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8")),
    )


def beyond_tolerance(drawn, case: str, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest differences from the golden, of those tensors that differ by more than their tolerance."""
    differences = {}
    for name, tensor in tensors.items():
        expected = drawn.tensors[f"{case}/{name}"]
        assert tensor.shape == expected.shape, f"{case}/{name}"
        differences[name] = (tensor - expected).abs().max().item()
    return {name: found for name, found in differences.items() if not found <= TOLERANCE[name]}


@pytest.mark.parametrize("case", CASES)
def test_prompt_ids_mel_projected_logits_and_answer(drawn, case):
    tensors, record = measure_answer(drawn.model, drawn.processor, drawn.clips, case)
    assert record == drawn.records[case]
    assert beyond_tolerance(drawn, case, tensors) == {}


def test_labels_losses_and_gradients_of_both_stages(drawn):
    tensors, record = measure_training(drawn.model, drawn.processor, drawn.clips)
    expected = drawn.records["training"]
    assert record["labels"] == expected["labels"]
    assert beyond_tolerance(drawn, "training", tensors) == {}
    for stage in ("stage 1", "stage 2"):
        assert record[stage]["loss"] == pytest.approx(expected[stage]["loss"], rel=1e-5)
        assert record[stage]["gradient norms"] == pytest.approx(expected[stage]["gradient norms"], rel=1e-5)
    assert set(record["stage 1"]["gradient norms"]) < set(record["stage 2"]["gradient norms"])


def test_checkpoint_goes_back_to_the_released_format_unchanged(drawn, tmp_path):
    back, original = read_tensors(to_official(drawn.model, drawn.processor, tmp_path / "back")), weights()
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)


@pytest.mark.parametrize(
    ("mistake", "case", "noticed"),
    [
        ("tanh GELU", "text then audio", {"projected"}),
        ("linear resampling", "audio then text", {"mel", "projected"}),
        ("first channel instead of the mean", "audio alone", {"mel", "projected", "logits"}),
        ("stride of 480,000 samples", "two windows", {"mel", "projected"}),
    ],
)
def test_golden_notices_usual_mistakes(drawn, mistake, case, noticed):
    model, clips = drawn.model, dict(drawn.clips)
    if mistake == "tanh GELU":
        model = copy.deepcopy(model)
        model.model.multi_modal_projector.act = torch.nn.GELU(approximate="tanh")
    elif mistake == "linear resampling":
        samples, rate = soundfile.read(drawn.recordings / "other.wav", dtype="float32")
        wanted = np.arange(len(clips["other"])) / 16_000
        clips["other"] = np.interp(wanted, np.arange(len(samples)) / rate, samples).astype(np.float32)
    elif mistake == "first channel instead of the mean":
        samples, rate = soundfile.read(drawn.recordings / "stereo.wav", dtype="float32")
        soundfile.write(drawn.recordings / "first.wav", samples[:, 0], rate)
        clips["stereo"] = read_audio(drawn.recordings / "first.wav")
    else:  # a sample more at the boundary makes the second window begin where a stride of 480,000 would
        clips["long"] = np.insert(clips["long"], 480_000, 0.0)
    tensors, _ = measure_question(model, drawn.processor, clips, case)
    assert noticed <= set(beyond_tolerance(drawn, case, tensors))
