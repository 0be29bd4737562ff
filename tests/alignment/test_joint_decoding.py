"""Joint decoding: CTC's prefix scores against every path, the scores of a beam search, and what `Transcriber` does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from support.tiny_families import family_tokenizer
from support.tiny_llaso import aligned_llaso, text_config, tiny_llaso, tone
from torch import nn

from llaso.alignment.alignment import Alignment, saved_alignment
from llaso.alignment.joint_decoding import NEVER, JointDecoding, PieceLookup, Prefixes, PrefixScores
from llaso.transcription.transcriber import Transcriber
from modeling_llaso import LlasoConfig

BLANK = 1
"""Place of the blank among the competing tokens of the small examples."""


def drawn(vectors: int, competing: int = 4, seed: int = 0) -> torch.Tensor:
    """Return log-probabilities of some vectors."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vectors, competing, generator=generator).double().mul(2).log_softmax(-1)


def every_text(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Return the probability of every text, as the sum over every path."""
    texts: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        chance = math.exp(sum(float(log_probs[n, token]) for n, token in enumerate(path)))
        text = tuple(token for token, _ in itertools.groupby(path) if token != BLANK)
        texts[text] = texts.get(text, 0.0) + chance
    return texts


def after(scores: PrefixScores, clip: int, text: tuple[int, ...]) -> Prefixes:
    empty = scores.empty(torch.tensor([clip]))
    return scores.written(empty, torch.tensor([0]), [text])


def test_prefixes_and_whole_texts_have_the_sum_over_every_path():
    clips = [drawn(6), drawn(4, seed=1)]  # the shorter one is padded
    scores = PrefixScores(clips, BLANK)
    for clip, log_probs in enumerate(clips):
        texts = every_text(log_probs)
        for text in [(), (0,), (2,), (0, 0), (0, 2, 3), (3, 3, 3), (2, 0, 2, 0)]:
            got = after(scores, clip, text)
            begin = sum(chance for other, chance in texts.items() if other[: len(text)] == text)
            assert float(got.prefix.exp()) == pytest.approx(begin, abs=1e-9)
            assert float(got.whole().exp()) == pytest.approx(texts.get(text, 0.0), abs=1e-9)


def test_many_continuations_at_once_are_those_one_by_one():
    scores = PrefixScores([drawn(12), drawn(9, seed=1)], BLANK)
    origins = torch.tensor([0, 0, 1, 1, 0])
    tokens: list[tuple[int, ...]] = [(0, 2), (0, 2, 2), (), (3,), (0,)]
    together = scores.written(scores.empty(torch.tensor([0, 1])), origins, tokens)
    for n, (clip, text) in enumerate(zip(origins.tolist(), tokens, strict=True)):
        alone = after(scores, clip, text)
        for one, other in zip(vars(together).values(), vars(alone).values(), strict=True):
            torch.testing.assert_close(one[n], other[0])


def test_a_text_longer_than_its_audio_is_impossible():
    scores = PrefixScores([drawn(3)], BLANK)
    text = after(scores, 0, (0, 2, 0, 2))
    assert float(text.prefix) < NEVER / 2 and float(text.whole()) < NEVER / 2


def test_tokens_are_heard_in_their_pieces():
    tokenizer = family_tokenizer("smollm2")
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", " h", "Q", "\n")}
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in ("Ġ", "h", "e", "t")]
    competing = torch.tensor(sorted([*letters, *ids["\n"]]))
    heard = PieceLookup(Alignment(torch.zeros(1), competing, ids["\n"][0], merges=0), tokenizer)
    for text in ("the", " h"):
        places = [place for token in ids[text] for place in heard.places(token) or pytest.fail(text)]
        assert tokenizer.decode(competing[places].tolist()) == text
    assert heard.places(ids["Q"][0]) is None  # no transcript has it
    assert heard.places(ids["\n"][0]) is None  # the blank is no text
    assert heard.places(tokenizer.eos_token_id) is None
    assert competing[heard.blank] == ids["\n"][0]


@pytest.fixture
def aligned():
    return aligned_llaso()


CLIPS = [tone(0.3), tone(0.7, 500.0), tone(0.5, 900.0, seed=2)]


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_of_a_search_are_the_weighted_log_probabilities(aligned, beams):
    model, processor = aligned
    inputs = dict(processor.apply_transcription_request(CLIPS))
    alignment = saved_alignment(model)
    audio = model.model.get_audio_embeds(inputs["input_features"], inputs["input_features_mask"])
    sizes = inputs["input_ids"].eq(model.config.audio_token_id).sum(1)
    rows = alignment.log_probs(audio).split(sizes.tolist())
    heard = PieceLookup(alignment, processor.tokenizer)
    joint = JointDecoding(rows, heard, [257], weight=0.4)
    search = {"length_penalty": 0.0, "num_return_sequences": beams} if beams > 1 else {}
    out = model.generate(
        **inputs,
        **search,
        num_beams=beams,
        max_new_tokens=12,
        do_sample=False,
        logits_processor=[joint],
        output_scores=True,
        return_dict_in_generate=True,
    )
    width = inputs["input_ids"].shape[1]
    ended = 0
    for n, sequence in enumerate(out.sequences[:, width:].tolist()):
        clip = n // beams
        end = sequence.index(257) if 257 in sequence else None
        text = sequence[:end]
        assert all(heard.places(token) is not None for token in text)
        prompt = inputs["input_ids"][clip, inputs["attention_mask"][clip].bool()]
        written = torch.tensor([*text, *([257] if end is not None else [])])
        alone = dict(processor.apply_transcription_request(CLIPS[clip]))
        alone["input_ids"] = torch.cat([prompt, written])[None]
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        with torch.no_grad():
            logits = model(**alone).logits[0, len(prompt) - 1 : -1]
        by_llm = logits.log_softmax(-1).gather(1, written[:, None]).sum()
        assert joint.log_prob(clip, tuple(written.tolist())) == pytest.approx(float(by_llm), abs=1e-3)
        if end is None or beams == 1:
            continue
        ended += 1
        said = torch.tensor([heard.places(token)[0] for token in text], dtype=torch.long)
        loss = nn.functional.ctc_loss(
            rows[clip].detach()[:, None], said[None], (len(rows[clip]),), (len(said),), heard.blank, reduction="none"
        )
        expected = 0.6 * float(by_llm) - 0.4 * float(loss)
        assert float(out.sequences_scores[n]) == pytest.approx(expected, abs=2e-3)
    assert ended or beams == 1


def test_clips_together_are_transcribed_as_alone_and_reading_the_prompt_once_changes_nothing(aligned, monkeypatch):
    transcriber = Transcriber(*aligned, max_new_tokens=12, ctc_weight=0.9)
    together = transcriber.transcribe(CLIPS)
    assert len({text for text, _, _ in together}) == 3
    alone = [transcriber.transcribe([clip])[0] for clip in CLIPS]
    monkeypatch.setattr(Transcriber, "_read_prompt_once", lambda *_: None)
    read_by_each = transcriber.transcribe(CLIPS)
    for results in (alone, read_by_each):
        for one, other in zip(together, results, strict=True):
            assert one[0] == other[0] and one[2] == other[2] and one[1] == pytest.approx(other[1], abs=1e-3)


def test_weights_choose_how_clips_are_decoded(aligned):
    model, processor = aligned
    plain = tiny_llaso("trim", seed=3)
    assert Transcriber(model, processor).ctc_weight == 0.3 and Transcriber(*plain).ctc_weight == 0
    with pytest.raises(ValueError, match=r"not aligned by CTC: its config\.json has no ctc_alignment"):
        Transcriber(*plain, ctc_weight=0.3)
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="it is a number from 0 to 1"):
            Transcriber(model, processor, ctc_weight=wrong)
    plain[0].generation_config.eos_token_id = 257
    greedy = Transcriber(model, processor, max_new_tokens=8, ctc_weight=0)
    assert greedy.transcribe(CLIPS) == Transcriber(*plain, max_new_tokens=8).transcribe(CLIPS)
    letters = set("abcdefgh ")
    for beams in (1, 4):
        joint = Transcriber(model, processor, max_new_tokens=8, ctc_weight=0.9, beams=beams)
        texts = [text for text, _, _ in joint.transcribe(CLIPS)]
        assert all(set(text) <= letters for text in texts) and any(texts)
    assert not all(set(text) <= letters for text, _, _ in greedy.transcribe(CLIPS))


def test_a_clip_of_one_vector_is_at_most_one_token(aligned):
    """A clip of a few samples has at most one audio token."""
    (text, mean, reason), *_ = Transcriber(*aligned, max_new_tokens=8).transcribe([tone(0.02)])
    assert len(text) <= 1 and math.isfinite(mean) and reason == "stop"


def test_the_alignment_is_saved_with_the_checkpoint(aligned, tmp_path):
    model, _ = aligned
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.ctc_alignment == model.config.ctc_alignment
    vectors = torch.randn(5, 24)
    torch.testing.assert_close(saved_alignment(loaded).log_probs(vectors), saved_alignment(model).log_probs(vectors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blank_id": None}, "blank_id is None, which is not among its token_ids"),
        ({"blank_id": 9}, "blank_id is 9"),
        ({"token_ids": [5, 3]}, "token_ids must be two or more ascending token ids from 0 to 269"),
        ({"token_ids": [3, 300]}, "from 0 to 269"),
        ({"token_ids": [3]}, "two or more"),
        ({"token_ids": "3"}, "token_ids must be"),
        ({"merges": "many"}, "merges is 'many'; it must be null or a whole number"),
        ({"scale": float("nan")}, "scale is nan; it must be a number above 0"),
        ({"more": 1}, r"must have the keys \['blank_id', 'merges', 'scale', 'token_ids'\], but it is"),
    ],
)
def test_an_alignment_of_no_use_is_refused(changes, message):
    alignment = {"token_ids": [3, 5], "blank_id": 3, "merges": None, "scale": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        LlasoConfig(text_config=text_config().to_dict(), ctc_alignment=alignment)


@pytest.mark.parametrize("alignment", [[1, 2], "abc", {}])
def test_what_is_no_alignment_at_all_is_refused(alignment):
    with pytest.raises(ValueError, match="must have the keys .* set ctc_alignment to null in config.json"):
        LlasoConfig(ctc_alignment=alignment)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_beyond_what_the_audio_can_say_a_batch_is_still_as_alone(aligned, beams, weight):
    """Without an end, transcripts go on after every vector has been used."""
    aligned[0].generation_config.eos_token_id = None
    transcriber = Transcriber(*aligned, max_new_tokens=40, ctc_weight=weight, beams=beams)
    together = transcriber.transcribe(CLIPS)
    for one, clip in zip(together, CLIPS, strict=True):
        assert transcriber.transcribe([clip])[0][0] == one[0]


def test_settings_of_generation_that_do_not_go_with_it_are_overridden(aligned):
    model, processor = aligned
    transcriber = Transcriber(model, processor, max_new_tokens=8, ctc_weight=0.9)
    expected = transcriber.transcribe(CLIPS)
    model.generation_config.cache_implementation = "static"
    model.generation_config.renormalize_logits = True
    assert transcriber.transcribe(CLIPS) == expected
    with pytest.raises(ValueError, match="beams is 0; it must be a whole number from 1"):
        Transcriber(model, processor, beams=0)


@pytest.mark.parametrize("weight", [1e-4, 0.3])
def test_any_weight_keeps_unknown_pieces_out(aligned, weight):
    texts = [text for text, _, _ in Transcriber(*aligned, max_new_tokens=8, ctc_weight=weight).transcribe(CLIPS)]
    assert all(set(text) <= set("abcdefgh ") for text in texts)


def test_scores_that_are_not_finite_are_refused(aligned):
    model, processor = aligned
    model.config.ctc_alignment["scale"] = 1e308
    with pytest.raises(ValueError, match="CTC's scores of the audio are not finite"):
        Transcriber(model, processor).transcribe(CLIPS)


def test_without_an_end_a_transcript_has_all_tokens_it_may(aligned):
    model, processor = aligned
    model.generation_config.eos_token_id = None
    results = Transcriber(model, processor, max_new_tokens=4, ctc_weight=0.9).transcribe(CLIPS)
    assert [reason for _, _, reason in results] == ["length"] * 3


def test_tokens_that_another_rule_forbids_are_not_written_with_any_weight(aligned):
    model, processor = aligned
    forbidden = processor.tokenizer("b", add_special_tokens=False)["input_ids"]
    for weight in (0.9, 1.0):
        transcriber = Transcriber(model, processor, max_new_tokens=8, ctc_weight=weight)
        assert any("b" in text for text, _, _ in transcriber.transcribe(CLIPS))
        results = transcriber._generate(CLIPS, bad_words_ids=[forbidden])
        assert not any("b" in text for text, _, _ in results) and all(math.isfinite(mean) for _, mean, _ in results)
