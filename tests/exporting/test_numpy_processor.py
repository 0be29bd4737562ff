"""Prompts and log-mel by NumPy alone are those of LlasoProcessor."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny_families import FAMILIES, family_llaso
from support.tiny_llaso import ask, tiny_processor, tone

from llaso.exporting.numpy_processor import NumpyProcessor
from llaso.exporting.portable_files import processor_description, write_processor

TEXT = {"type": "text", "text": "What is said? "}
AUDIO = {"type": "audio"}
CONVERSATIONS = [
    [{"role": "user", "content": [TEXT, AUDIO]}],
    [{"role": "user", "content": [AUDIO, TEXT]}],
    [{"role": "user", "content": [AUDIO]}],
    [{"role": "user", "content": [TEXT, AUDIO, TEXT, AUDIO]}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [TEXT, AUDIO]},
        {"role": "assistant", "content": "nothing"},
        {"role": "user", "content": "Are you sure?"},
    ],
]


def by_numpy(processor, folder) -> NumpyProcessor:
    write_processor(processor, folder)
    return NumpyProcessor(folder, processor_description(processor))


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """A family's processor, and the same by NumPy."""
    _, processor = family_llaso(request.param)
    return processor, by_numpy(processor, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_are_the_processors_token_by_token(conversation, both):
    processor, ours = both
    parts = [part for message in conversation if isinstance(message["content"], list) for part in message["content"]]
    clips = [tone(0.3 + 0.4 * place) for place in range(parts.count(AUDIO))]
    inputs = ask(processor, conversation, clips)
    found = ours(conversation, clips)
    assert found.input_ids.tolist() == inputs["input_ids"].tolist()
    answer = found.input_ids[0, -30:].tolist()
    assert ours.decode(answer) == processor.decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize("padding", ["trim", "full"])
@pytest.mark.parametrize("samples", [1, 159, 160, 161, 16_000, 479_800, 479_999, 480_000, 480_001, 481_000, 960_123])
def test_windows_and_log_mel_are_the_processors(samples, padding, tmp_path):
    processor = tiny_processor(audio_padding=padding, projector_stride=3)
    clip = tone(samples / 16_000)
    clip[0] = 0.5  # a single sample is heard, too
    inputs = ask(processor, CONVERSATIONS[0], [clip])
    found = by_numpy(processor, tmp_path)(CONVERSATIONS[0], [clip])
    assert found.input_ids.tolist() == inputs["input_ids"].tolist()
    assert sum(found.input_features_mask.sum(1)) == int(inputs["input_features_mask"].sum())
    windows = np.concatenate([mel[:, mask == 1] for mel, mask in pairs(found)], axis=1)
    theirs = inputs["input_features"].numpy().transpose(1, 0, 2).reshape(windows.shape[0], -1)
    np.testing.assert_allclose(windows, theirs[:, inputs["input_features_mask"].numpy().reshape(-1) == 1], atol=2e-6)


def pairs(inputs):
    return zip(inputs.input_features, inputs.input_features_mask, strict=True)


@pytest.mark.parametrize(
    ("conversation", "audio", "message"),
    [
        ([], [], "no conversation"),
        ([{"role": "robot", "content": "x"}], [], "message 0.*role"),
        ([{"role": "user"}], [], "neither a text nor a list"),
        ([{"role": "assistant", "content": [AUDIO]}], [tone(0.1)], "a user's audio"),
        ([{"role": "user", "content": "an <audio> typed"}], [], "'<audio>'"),
        ([{"role": "user", "content": "<|eot_id|>"}], [], "special token"),
        ([{"role": "user", "content": [AUDIO, AUDIO]}], [tone(0.1)], "2 audio parts without a recording, but 1 rec"),
        (
            [{"role": "user", "content": [AUDIO]}],
            [tone(0.1)] * 2,
            "1 audio parts without a recording, but 2 recordings",
        ),
        (
            [{"role": "user", "content": [AUDIO | {"path": "a.wav"}]}],
            [tone(0.1)],
            "0 audio parts without a rec.* but 1",
        ),
        ([{"role": "user", "content": [{"type": "audio", "path": "no.wav"}]}], [], "no.wav"),
        ([{"role": "user", "content": [AUDIO]}], [np.zeros(1600, dtype=np.float32)], "audio 0.*silent"),
        ([{"role": "user", "content": [AUDIO]}], [tone(3.0)], "lasts 3.0 s"),
    ],
)
def test_what_breaks_a_prompt_is_refused(conversation, audio, message, tmp_path):
    processor = tiny_processor(audio_padding="trim", max_audio_len=2)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        by_numpy(processor, tmp_path)(conversation, audio)
