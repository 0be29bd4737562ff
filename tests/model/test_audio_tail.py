"""A tail of silence behind each recording is what the same recording with silence appended would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_llaso import ask, question, tiny_processor, tone
from transformers import AutoProcessor

from llaso.exporting.numpy_processor import NumpyProcessor
from llaso.exporting.portable_files import processor_description, write_processor
from modeling_llaso.processing_llaso import LlasoProcessor

RATE = 16_000
TAIL = 0.7
TRIM, WITH_TAIL = tiny_processor(audio_padding="trim"), tiny_processor(audio_padding="trim", audio_tail=TAIL)


def inputs_of(processor: LlasoProcessor, clips: list[np.ndarray]):
    return ask(processor, question("Compare", clips=len(clips)), clips)


@settings(max_examples=20, deadline=None)
@given(samples=st.lists(st.integers(1, 40 * RATE), min_size=1, max_size=3))
def test_a_tail_is_silence_up_to_the_end_of_the_last_window(samples):
    clips = [tone(count / RATE, seed=count) for count in samples]
    for clip in clips:
        clip[0] = 0.5  # a tone begins at 0, and a clip of one sample would be silent
    room = [-len(clip) % (30 * RATE) for clip in clips]
    by_hand = [np.pad(clip, (0, min(round(TAIL * RATE), free))) for clip, free in zip(clips, room, strict=True)]
    found, wanted = inputs_of(WITH_TAIL, clips), inputs_of(TRIM, by_hand)
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
    torch.testing.assert_close(found["input_features"], wanted["input_features"], rtol=0, atol=0)
    counted = [WITH_TAIL.count_audio_tokens(len(clip)) for clip in clips]
    assert sum(counted) == int((found["input_ids"] == WITH_TAIL.audio_token_id).sum())


def test_lengths_without_audio_count_the_tail():
    clip = tone(1.3)
    found = inputs_of(WITH_TAIL, [clip])["input_ids"].shape[1]
    prompt = inputs_of(TRIM, [clip])["input_ids"].shape[1] - TRIM.count_audio_tokens(len(clip))
    assert found == prompt + TRIM.count_audio_tokens(len(clip) + round(TAIL * RATE))
    conversation = question("Compare", clips=1)
    more = WITH_TAIL.expanded_length(conversation, [1.3]) - TRIM.expanded_length(conversation, [1.3])
    assert more == found - inputs_of(TRIM, [clip])["input_ids"].shape[1]


def test_the_longest_recording_is_measured_without_its_tail():
    processor = tiny_processor(audio_padding="trim", audio_tail=TAIL, max_audio_len=2)
    assert processor.audio_windows(2 * RATE) == [(0, 2 * RATE + round(TAIL * RATE))]
    with pytest.raises(ValueError, match=r"lasts 2\.1 s, longer than max_audio_len, 2 s"):
        processor.audio_windows(2 * RATE + 1)


def test_a_tail_is_saved_and_another_is_warned_of(tmp_path):
    WITH_TAIL.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).audio_tail == TAIL
    with pytest.warns(UserWarning, match=r"trained with audio_tail=0\.7 and is loaded with 0\.2"):
        assert AutoProcessor.from_pretrained(tmp_path, audio_tail=0.2).audio_tail == 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audio_padding": "full", "audio_tail": 0.5}, "silence fills the window anyway; set audio_tail to 0"),
        ({"audio_padding": "trim", "audio_tail": -1.0}, "audio_tail is -1.0; it is a number of seconds from 0 to 30"),
        ({"audio_padding": "trim", "audio_tail": float("nan")}, "audio_tail is nan"),
        ({"audio_padding": "trim", "audio_tail": 31.0}, "audio_tail is 31.0"),
        ({"audio_padding": "trim", "audio_tail": "1"}, "audio_tail is '1'; it is a number of seconds"),
        ({"audio_padding": "trim", "audio_tail": None}, "audio_tail is None"),
        ({"audio_padding": "trim", "audio_tail": True}, "audio_tail is True"),
    ],
)
def test_no_other_tail_is_taken(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(**settings)


@pytest.mark.parametrize("samples", [1, 16_000, 479_800, 480_000, 481_000])
def test_exported_files_add_the_same_tail(samples, tmp_path):
    clip = tone(samples / RATE)
    clip[0] = 0.5
    write_processor(WITH_TAIL, tmp_path)
    conversation = [{"role": "user", "content": [{"type": "text", "text": "What is said? "}, {"type": "audio"}]}]
    found = NumpyProcessor(tmp_path, processor_description(WITH_TAIL))(conversation, [clip])
    wanted = ask(WITH_TAIL, conversation, [clip])
    assert found.input_ids.tolist() == wanted["input_ids"].tolist()
    assert int(found.input_features_mask.sum()) == int(wanted["input_features_mask"].sum())
