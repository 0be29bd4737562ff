"""The quickstart's stand-ins for pretrained backbones: what they are trained on, and what their tokenizer does."""

from __future__ import annotations

import random

import pytest
import torch

from llaso.quickstart.small_backbones import spell, split_phonemes, stretched, train_tokenizer
from modeling_llaso.processing_llaso import SYSTEM_PROMPT


def test_the_system_text_is_one_token_and_comes_back_whole():
    tokenizer = train_tokenizer(["the red ball is in the kitchen"])
    ids = tokenizer(SYSTEM_PROMPT + " the red ball", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[:1]) == SYSTEM_PROMPT
    assert tokenizer.decode(ids) == SYSTEM_PROMPT + " the red ball"


def test_digits_stand_alone_and_turn_marks_are_whole():
    tokenizer = train_tokenizer(["notes 60 and 61"] * 50)
    assert tokenizer.tokenize("61")[-2:] == ["6", "1"]
    assert tokenizer.tokenize("<|eot_id|>") == ["<|eot_id|>"]


def test_phonemes_keep_their_marks():
    assert split_phonemes("ðə ˈkiː") == ("ð", "ə", "|", "k", "iː")


def test_spelling_is_drawn_out_but_keeps_the_order():
    phonemes, lengths, in_order = ("k", "iː", "|", "b", "ɒ"), set(), 0
    for seed in range(50):
        written = spell(phonemes, phonemes, random.Random(seed)).split()
        spoken = [symbol for symbol, before in zip(written, ["", *written], strict=False) if symbol != before]
        in_order += tuple(symbol for symbol in spoken if symbol != "_") == phonemes
        lengths.add(len(written))
    # A phoneme slips with 2.5 % and is lost with 1.5 % on average: four spellings in five have all of them, in order.
    assert 30 < in_order < 50
    assert len(lengths) > 5  # drawn out now more, now less
    assert spell(phonemes, phonemes, random.Random(0)) == spell(phonemes, phonemes, random.Random(0))


def test_stretching_moves_a_resonance_up_the_mel_axis():
    mel = torch.zeros(80, 7)
    mel[40] = 1.0
    assert torch.equal(stretched(mel, 1.0), mel)
    assert stretched(mel, 1.1).sum(1).argmax() == pytest.approx(44, abs=1)
    assert stretched(mel, 0.9).sum(1).argmax() == pytest.approx(36, abs=1)
    assert stretched(mel, 1.1).shape == mel.shape
