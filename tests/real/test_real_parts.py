"""The model with real pretrained parts (Whisper-base, SmolLM2): what tiny random weights cannot show.

Everything here is skipped where there are no such parts; `tests/support/real_parts.py` says where they are looked for.
"""

from __future__ import annotations

import io
import re

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from support.real_parts import RealParts, clips, real_parts
from support.tiny_llaso import RATE, ask, question
from support.tiny_training import curve, row, save_corpus
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from llaso.training.run.train import train
from modeling_llaso.conversion import from_official, new_model, new_processor, read_tensors, to_official
from modeling_llaso.processing_llaso import AUDIO_TAGS, SYSTEM_PROMPT

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def parts() -> RealParts:
    return real_parts()


@pytest.fixture(scope="module")
def full(parts):
    return new_model(parts.encoder, parts.llm, dtype="float32")


def pooled(parts: RealParts, padding: str, stride: int):
    return new_model(
        parts.encoder, parts.llm, audio_padding=padding, projector_stride=stride, projector_pooling="concatenate",
        projector_norm=True, dtype="float32", seed=42,
    )  # fmt: skip


@torch.no_grad()
def test_the_encoder_equals_transformers_whisper(parts, full):
    """From samples to vectors, in `full`: the processor's log-mel and our encoder against transformers' own."""
    model, processor = full
    theirs = WhisperForConditionalGeneration.from_pretrained(parts.encoder, dtype=torch.float32).eval().model.encoder
    extractor = WhisperFeatureExtractor.from_pretrained(parts.encoder)
    for samples in clips(2):
        wanted = theirs(extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features).last_hidden_state
        inputs = ask(processor, [question("What is said?")], [samples])
        ours = model.get_audio_features(inputs["input_features"], inputs.get("input_features_mask"))
        assert wanted.std() > 0.1  # real weights: vectors that differ from each other
        torch.testing.assert_close(ours.last_hidden_state, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_conversion_there_and_back(full, tmp_path):
    """Into the released format and back equal to the bit; saved as ours, the same logits."""
    model, processor = full
    released = to_official(model, processor, tmp_path / "released")
    back, back_processor = from_official(released)
    before, after = model.state_dict(), back.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again = read_tensors(to_official(back, back_processor, tmp_path / "again"))
    first = read_tensors(released)
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)

    back.save_pretrained(tmp_path / "ours")
    back_processor.save_pretrained(tmp_path / "ours")
    opened = AutoModelForMultimodalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    reader = AutoProcessor.from_pretrained(tmp_path / "ours")
    after = opened.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    theirs, ours = (ask(each, [question("What is said?")], clips(1)) for each in (processor, reader))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize(("padding", "stride"), [("full", 16), ("trim", 4)])
@torch.no_grad()
def test_a_batch_equals_one_by_one(parts, padding, stride):
    model, processor = pooled(parts, padding, stride)
    sound = clips(2)
    texts = ["How many words are spoken in this recording, and by whom?", "Gender?"]
    together = ask(processor, [question(text) for text in texts], sound)
    logits = model(**together, logits_to_keep=1).logits[:, 0]
    answers = model.generate(**together, max_new_tokens=6)[:, together["input_ids"].shape[1] :]
    for place, (text, samples) in enumerate(zip(texts, sound, strict=True)):
        alone = ask(processor, [question(text)], [samples])
        torch.testing.assert_close(model(**alone, logits_to_keep=1).logits[0, 0], logits[place], atol=2e-3, rtol=1e-4)
        answer = model.generate(**alone, max_new_tokens=6)[0, alone["input_ids"].shape[1] :]
        assert answer.tolist() == answers[place].tolist()[: len(answer)]


def test_the_prompt_is_chatml_to_the_token(parts):
    """The ids are those of the language model's own tokenizer and template, with the audio's tokens in their place."""
    processor = new_processor(parts.encoder, parts.llm, audio_padding="trim", projector_stride=4)
    plain = AutoTokenizer.from_pretrained(parts.llm)
    if "<|im_start|>" not in plain.get_vocab():
        pytest.skip(f"{parts.llm} has other turn marks than ChatML")
    samples = clips(1)[0]
    ids = ask(processor, [question("What is said?")], [samples])["input_ids"][0].tolist()
    tags = processor.tokenizer.convert_tokens_to_ids(list(AUDIO_TAGS))
    assert tags == list(range(len(plain), len(plain) + 4)) and processor.audio_token_id == len(plain) + 4
    heard = [processor.audio_token_id] * processor.count_audio_tokens(len(samples))
    opened, closed, audio_start, audio_end = tags

    def written(text: str) -> list[int]:
        """Tokens of a text, in which the tags of audio are tokens of their own: the system prompt names them."""
        pieces = re.split("(</?Audio>)", text)
        return [
            token
            for piece in pieces
            for token in (
                [opened if piece == AUDIO_TAGS[0] else closed] if "Audio>" in piece else plain(piece)["input_ids"]
            )
        ]

    before = written(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\nWhat is said?\n")
    after = written("\n\n<|im_end|>\n<|im_start|>assistant\n")
    assert ids == [*before, opened, audio_start, *heard, audio_end, closed, *after]

    turns = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And three more?"},
    ]
    theirs = plain.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    ours = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert ours["input_ids"][0].tolist() == list(theirs["input_ids"])


def test_training_steps_lower_the_loss_and_leave_the_frozen_parts(parts, tmp_path):
    """Stage 1 on four clips: the projector alone changes, and the loss of the same rows falls."""
    rows = []
    for number, samples in enumerate(clips(4)):
        file = io.BytesIO()
        soundfile.write(file, samples[: 2 * RATE], RATE, format="FLAC")
        rows.append({**row(number), "audio": [{"bytes": file.getvalue(), "path": f"{number}.flac"}]})
    corpus = save_corpus(tmp_path / "corpus", {"train": rows, "validation": rows[:1]})
    recipe = {
        "model": {
            "encoder": str(parts.encoder), "llm": str(parts.llm), "audio_padding": "trim", "projector_stride": 4,
            "projector_pooling": "concatenate", "projector_norm": True,
        },
        "train": ["projector"],
        "data": {"path": str(corpus)},
        "batch": {"per_device": 4},
        "optimizer": {"learning_rate": 1e-3, "max_steps": 4},
        "compute": {"precision": "fp32", "encoder_cache_gb": 0.1},
        "watch": {"log_every": 1, "final_rows": 0, "reporters": ["none"]},
        "out": str(tmp_path / "out"),
    }  # fmt: skip
    train(recipe)
    losses = [step[1] for step in curve(tmp_path / "out")]
    assert losses[-1] < 0.95 * losses[0]
    fresh, _ = pooled(parts, "trim", 4)
    before, after = fresh.state_dict(), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if name.startswith("model.multi_modal_projector.")}
