"""Continuous batching: whichever rows join and leave, every row's answer is the one it would have alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_llaso import ask, question, tiny_llaso, tiny_tokenizer, tone
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llaso.serving.batch import Batch
from llaso.serving.detokenizer import IncrementalDetokenizer
from llaso.serving.sampling import Sampler, next_tokens

NEW_TOKENS = (9, 3, 14, 6, 1, 11)


def prompts(processor) -> list:
    """Six questions: with one clip, two, none, and of every length."""
    clips = [tone(0.2 + 0.45 * number, pitch=200 + 90 * number, seed=number) for number in range(4)]
    return [
        ask(processor, [question("What is this?")], [clips[0]]),
        ask(processor, [question("Compare the two recordings, please.", clips=2)], [clips[1], clips[3]]),
        ask(processor, [question("No audio at all", clips=0)], []),
        ask(processor, [question("Short")], [clips[3]]),
        ask(processor, [question("Say something long about what you hear in the clip that follows")], [clips[2]]),
        ask(processor, [question("x", clips=0)], []),
    ]


@pytest.mark.parametrize(
    ("family", "audio_padding", "settings"),
    [
        ("llama", "trim", {}),
        ("llama", "full", {"projector_stride": 4}),
        ("qwen3", "trim", {"projector_stride": 2, "projector_pooling": "concatenate"}),
        ("gemma2", "trim", {"sliding_window": 48}),
        ("gemma3_text", "trim", {"sliding_window": 48}),
    ],
)
def test_rows_that_join_and_leave_a_batch_answer_as_they_would_alone(family, audio_padding, settings):
    window = settings.pop("sliding_window", None)
    model, processor = tiny_llaso(audio_padding, family, **settings)
    if window:
        narrow(model, window)
    asked = prompts(processor)
    alone = [
        model.generate(
            **inputs, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        for inputs, count in zip(asked, NEW_TOKENS, strict=True)
    ]

    batch = Batch(model)
    rows: list[int] = []
    answers: list[list[int]] = [[] for _ in asked]

    def take(logits: torch.Tensor, new: list[int]) -> None:
        for place, (row, token) in enumerate(zip(new, next_tokens(logits, [Sampler()] * len(new)), strict=True)):
            expected = alone[row].logits[len(answers[row])][0]
            torch.testing.assert_close(logits[place], expected, rtol=1e-4, atol=1e-4)
            answers[row].append(token)

    arrivals = {0: [2, 0], 1: [1], 4: [3, 5, 4]}
    for step in range(40):
        if new := arrivals.get(step, []):
            logits, audio = batch.join([asked[row] for row in new])
            assert [len(own) for own in audio] == [
                int(asked[row]["input_ids"].eq(model.config.audio_token_id).sum()) for row in new
            ]
            rows += new
            take(logits, new)
        kept = [place for place, row in enumerate(rows) if len(answers[row]) < NEW_TOKENS[row]]
        batch.keep(kept)
        rows = [rows[place] for place in kept]
        if rows:
            take(batch.step([answers[row][-1] for row in rows]), rows)
    assert not rows and batch.cache is None
    for inputs, answer, single in zip(asked, answers, alone, strict=True):
        assert answer == single.sequences[0, inputs["input_ids"].shape[1] :].tolist()


def narrow(model, window: int) -> None:
    """Shrink the sliding window, so that the prompts are longer than it."""
    text_config = model.config.text_config
    text_config.sliding_window = window
    for layer in model.model.language_model.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = window


def test_logits_of_a_row_do_not_depend_on_its_company():
    model, processor = tiny_llaso("trim")
    asked = prompts(processor)
    batch, alone = Batch(model), Batch(model)
    (together, _), (single, _) = batch.join(asked), alone.join(asked[1:2])
    for token in (5, 77, 130):
        torch.testing.assert_close(together[1], single[0], rtol=1e-4, atol=1e-4)
        together, single = batch.step([token] * len(asked)), alone.step([token])
    batch.keep([1])
    assert batch.cache.layers[0].keys.shape[2] == max(batch.lengths)
    torch.testing.assert_close(batch.step([9])[0], alone.step([9])[0], rtol=1e-4, atol=1e-4)


# ---- Sampling ----


def test_a_seed_gives_the_same_tokens_in_any_company():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3
    alone = Sampler(temperature=0.8, top_p=0.95, seed=11)
    expected = [next_tokens(logits[2:3], [alone])[0] for _ in range(20)]
    assert len(set(expected)) > 1
    same = Sampler(temperature=0.8, top_p=0.95, seed=11)
    company = [Sampler(), Sampler(1.0), same, Sampler(2.0, 0.1), Sampler()]
    assert [next_tokens(logits, company)[2] for _ in range(20)] == expected


def test_sampled_shares_are_the_nucleus_probabilities():
    """Against the definition: softmax at the temperature, the smallest set that reaches top_p, renormalized."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -3.0]])
    temperature, top_p, draws = 0.7, 0.9, 4000
    probabilities = torch.softmax(logits[0].double() / temperature, -1).numpy()
    kept = np.cumsum(probabilities) - probabilities < top_p
    expected = probabilities * kept / (probabilities * kept).sum()
    assert kept.tolist() == [True, True, True, False, False]
    one = Sampler(temperature, top_p, seed=3)
    tokens = next_tokens(logits.repeat(draws, 1), [one] * draws)
    shares = np.bincount(tokens, minlength=5) / draws
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / draws)
    assert shares[~kept].sum() == 0


@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(1e-30), Sampler(2.0, top_p=0.0), Sampler(1.0, top_p=1e-9)])
def test_no_temperature_and_no_nucleus_is_the_best_token(sampler):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    assert {next_tokens(logits, [sampler])[0] for _ in range(20)} == {int(logits.argmax())}


# ---- Text as it grows ----


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's way: a word's space is part of it, and a text's first one is not shown; bytes fall back."""
    words = ["<unk>", "</s>", "▁the", "▁dog", "s", "▁", "▁bark", "ing", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.BPE(vocab={w: n for n, w in enumerate(words)}, merges=[], unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


BYTES, SPACES = tiny_tokenizer(), metaspace_tokenizer()
ENGLISH = st.text("ab ", max_size=12)


@settings(deadline=None, max_examples=100)
@given(
    text=st.text(max_size=30), noise=st.lists(st.integers(0, 261), max_size=12), stops=st.lists(ENGLISH, max_size=2)
)
def test_pieces_are_the_whole_text_up_to_the_first_stop_bytes(text, noise, stops):
    check_growth(BYTES, BYTES.encode(text, add_special_tokens=False) + noise, [stop for stop in stops if stop])


WORDS = st.integers(2, 7).map(lambda word: [word]) | st.just([1])
CHARACTERS = st.characters(exclude_categories=["Cs"]).map(lambda letter: [8 + byte for byte in letter.encode()])


@settings(deadline=None, max_examples=100)
@given(tokens=st.lists(WORDS | CHARACTERS, max_size=15), stops=st.lists(ENGLISH, max_size=2))
def test_pieces_are_the_whole_text_up_to_the_first_stop_words(tokens, stops):
    """Of whole characters: a run of bytes with a broken one is undone as a whole, said or not."""
    check_growth(SPACES, sum(tokens, []), [stop for stop in stops if stop])


def check_growth(tokenizer, tokens: list[int], stops: list[str]) -> None:
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    growing, chunks = IncrementalDetokenizer(tokenizer, stops), []
    for token in tokens:
        chunks.append(growing.push(token))
        if growing.stopped:
            break
    chunks.append(growing.finish())
    assert growing.stopped == bool(ends)
    said = "".join(chunks)
    assert said == whole[: min(ends)] if ends else said == whole


def test_a_stop_across_tokens_is_never_said_and_half_a_stop_is():
    growing = IncrementalDetokenizer(BYTES, ["STOP", "\n\n"])
    assert [growing.push(token) for token in BYTES.encode("aSTx\nST", add_special_tokens=False)] == [
        "a", "", "", "STx", "", "\n", "",
    ]  # fmt: skip
    assert not growing.stopped
    assert [growing.push(token) for token in BYTES.encode("OPz", add_special_tokens=False)][:2] == ["", ""]
    assert growing.stopped and growing.finish() == ""


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aba", ["", "", ""]),  # at "ab" the stop "b" is complete, but "aba" may begin before it
        ("abx", ["", "", "a"]),
        ("xab", ["x", "", "", "a"]),  # the end decides
    ],
)
def test_of_two_overlapping_stops_the_one_that_begins_first_wins(text, pieces):
    tokens = BYTES.encode(text, add_special_tokens=False)
    check_growth(BYTES, tokens, ["b", "aba"])
    growing = IncrementalDetokenizer(BYTES, ["b", "aba"])
    assert [*(growing.push(token) for token in tokens), growing.finish()][: len(pieces)] == pieces and growing.stopped


@settings(deadline=None, max_examples=300)
@given(text=st.text("ab", max_size=12), stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_overlapping_stops_end_the_stream_where_they_end_the_whole_text(text, stops):
    check_growth(BYTES, BYTES.encode(text, add_special_tokens=False), stops)


def test_characters_come_whole():
    growing = IncrementalDetokenizer(BYTES)
    chunks = [growing.push(token) for token in BYTES.encode("é😀!", add_special_tokens=False)]
    assert chunks == ["", "é", "", "", "", "😀", "!"]
