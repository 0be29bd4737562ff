"""Alignment by CTC: its loss and best path, which rows it takes, and runs with it, mixed or without the LLM."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from support.tiny_families import FAMILIES, SENTENCES, family_tokenizer
from support.tiny_training import curve, row, save_backbones, save_corpus, tiny_recipe, weights_digest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llaso.alignment.alignment import Alignment, save_alignment, saved_alignment
from llaso.alignment.short_pieces import ShortPieces
from llaso.training.recipe.recipe import load_recipe
from llaso.training.rows.collator import Collator, RowEncoder
from llaso.training.rows.corpora import open_corpus
from llaso.training.rows.training_rows import pieces_of
from llaso.training.run import trainer as trainer_module
from llaso.training.run.ctc_loss import SHARPNESS, alignment_with, match_loudness
from llaso.training.run.model_setup import open_model
from llaso.training.run.train import train
from llaso.training.run.trainer import LlasoTrainer
from modeling_llaso import LlasoForConditionalGeneration


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctc")
    save_backbones(folder)
    asr = [row(i) for i in range(24)]
    save_corpus(folder / "corpus", {"train": asr, "validation": [row(i, seed=1) for i in range(4)]})
    others = [row(i, task="IP", clips=2) for i in range(4)]
    save_corpus(folder / "mixed", {"train": asr[:8] + others, "validation": [row(i, seed=1) for i in range(4)]})
    save_corpus(folder / "text", {"train": [row(i, task="AQA", clips=0) for i in range(4)]})
    return folder


def aligned(root: Path, out: str, weight: float = 1.0, **changes):
    return tiny_recipe(root, out, optimizer__ctc_weight=weight, **changes)


def test_the_loss_sums_over_every_way_to_say_the_transcript():
    torch.manual_seed(0)
    table = torch.randn(9, 6)
    alignment = Alignment(table, torch.tensor([2, 4, 7]), blank=4)
    audio, sizes = torch.randn(7, 6), torch.tensor([3, 4])
    transcripts, of_rows = torch.tensor([7, 2, 2, 8]), torch.tensor([1, 3])
    got = alignment.row_losses(audio, sizes, transcripts, of_rows)
    competing = [2, 4, 7, 8]  # 8 competes because the batch says it
    rows = zip(audio.split([3, 4]), ([7], [2, 2, 8]), strict=True)
    for loss, (vectors, said) in zip(got, rows, strict=True):
        chances = (vectors @ table[competing].T).softmax(-1)
        total = 0.0
        for path in itertools.product(range(4), repeat=len(vectors)):
            heard = [competing[place] for place, _ in itertools.groupby(path)]
            if [token for token in heard if token != 4] == said:
                total += float(torch.stack([chances[n, place] for n, place in enumerate(path)]).prod())
        torch.testing.assert_close(loss, -torch.tensor(total).log(), rtol=1e-4, atol=1e-5)


def test_the_best_path_leaves_out_blanks_and_repetitions():
    alignment = Alignment(torch.eye(5), torch.tensor([0, 1, 3]), blank=0)
    audio = torch.eye(5)[[1, 1, 0, 1, 3, 3, 0, 3]]
    assert alignment.read(audio, torch.tensor([5, 3])) == [[1, 1, 3], [3, 3]]
    silent = alignment.read(torch.eye(5)[[0, 2]], torch.tensor([2]))  # 2 does not compete
    assert silent == [[]]


def test_the_corpus_says_which_tokens_compete(root):
    model, processor = open_model(load_recipe(aligned(root, "unused")))
    corpus = open_corpus(load_recipe(aligned(root, "unused")).data)
    alignment = alignment_with(model, processor, corpus)
    said = {token for one in corpus for token in processor.tokenizer(one["target"])["input_ids"]}
    special = set(processor.tokenizer.all_special_ids)
    assert processor.tokenizer.decode([alignment.blank]) == "\n"
    assert set(alignment.competing.tolist()) == said - special | {alignment.blank}
    own = alignment.embeddings[alignment.competing]
    assert float((alignment.scale * own * own).sum(-1).mean()) == pytest.approx(SHARPNESS)


def test_rows_that_are_no_transcript_are_refused_or_left_to_the_llm(root):
    _, processor = open_model(load_recipe(aligned(root, "unused")))
    rows = [row(0), row(1, task="IP", clips=2), row(2)]
    batch = Collator(RowEncoder(processor, 2048, align="some"))(rows)
    assert batch["transcript_sizes"].tolist()[1] == 0 and batch["transcript_sizes"].sum() == len(batch["transcripts"])
    words = processor.tokenizer.decode(batch["transcripts"])
    assert words == rows[0]["target"] + rows[2]["target"]
    with pytest.raises(ValueError, match="ip-0-0001.*task IP.*ctc_weight=1"):
        Collator(RowEncoder(processor, 2048, align="all"))(rows)
    spoken = row(0) | {"modality": "audio"}  # the recording holds the instruction as well
    with pytest.raises(ValueError, match="format audio"):
        Collator(RowEncoder(processor, 2048, align="all"))([spoken])
    processor.projector_stride = 100
    with pytest.raises(ValueError, match=r"needs \d+ audio tokens, but it has 1"):
        Collator(RowEncoder(processor, 2048, align="all"))([row(5)])
    assert Collator(RowEncoder(processor, 2048, align="all"), skip_bad_rows=True)([row(5)])["skipped"] == [
        "asr-0-0005"
    ]


@pytest.mark.parametrize("family", [*FAMILIES, "tiny"])
def test_pieces_are_those_of_a_tokenizer_with_fewer_merges(root, family):
    tokenizer = (
        family_tokenizer(family) if family != "tiny" else open_model(load_recipe(aligned(root, "unused")))[1].tokenizer
    )
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = SENTENCES if family != "tiny" else [row(n)["target"] for n in range(8)]
    lengths = []
    for merges in (0, 20, 100, len(written["model"]["merges"])):
        fewer = {**written["model"], "merges": written["model"]["merges"][:merges], "ignore_merges": False}
        reference = Tokenizer.from_str(json.dumps(written | {"model": fewer}))
        pieces = ShortPieces(tokenizer, merges)
        lengths.append(0)
        for text in texts:
            got = pieces.split(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])).tolist()
            assert got == reference.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(got) == tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
            lengths[-1] += len(got)
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]


def test_special_tokens_and_bytes_stay_whole_and_other_tokenizers_are_refused():
    tokenizer = family_tokenizer("smollm2")
    marks = torch.tensor(tokenizer.all_special_ids)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    assert set(marks.tolist()) <= set(vocabulary.values())  # so that they could be split
    assert ShortPieces(tokenizer, 0).split(marks).tolist() == marks.tolist()
    letters = ["<", "0", "x", "C", "3", ">", "a", "b"]
    vocab = {token: n for n, token in enumerate([*letters, "ab", "<0xC3>"])}
    of_bytes = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], byte_fallback=True))
    split = ShortPieces(PreTrainedTokenizerFast(tokenizer_object=of_bytes), 0).split(torch.tensor([8, 9]))
    assert split.tolist() == [6, 7, 9]
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0)])))
    with pytest.raises(ValueError, match="tokenizer is Unigram; set optimizer.ctc_merges=null in a recipe"):
        ShortPieces(unigram, 100)


def test_transcripts_and_what_competes_are_in_pieces(root):
    recipe = load_recipe(aligned(root, "unused", optimizer__ctc_merges=0))
    model, processor = open_model(recipe)
    pieces = pieces_of(recipe, processor)
    encode = RowEncoder(processor, 2048, align="all", pieces=pieces)
    example = encode(row(0))
    letters = [processor.tokenizer.decode([piece]) for piece in example.transcript.tolist()]
    assert letters == list(row(0)["target"])
    alignment = alignment_with(model, processor, open_corpus(recipe.data), pieces)
    competing = [processor.tokenizer.decode([token]) for token in alignment.competing.tolist()]
    said = {letter for one in open_corpus(recipe.data) for letter in one["target"]}
    assert sorted(competing) == sorted({*said, "\n"})


def test_line_breaks_are_not_aligned_and_rows_too_long_for_their_audio_are_named(root, caplog):
    _, processor = open_model(load_recipe(aligned(root, "unused")))
    broken = row(0)
    words = broken["target"].split()
    broken["target"] = broken["messages"][-1]["content"][0]["text"] = "\n".join(words)
    example = RowEncoder(processor, 2048, align="all")(broken)
    assert processor.tokenizer.decode(example.transcript) == "".join(words)
    processor.projector_stride = 100
    assert RowEncoder(processor, 2048, align="some")(row(5)).transcript is None
    assert "row asr-0-0005 is not aligned by CTC: its transcript needs" in caplog.text


def test_a_corpus_without_transcripts_is_refused(root):
    recipe = load_recipe(aligned(root, "unused", data__path=str(root / "text")))
    model, processor = open_model(recipe)
    with pytest.raises(ValueError, match="no row to train on has a transcript"):
        alignment_with(model, processor, open_corpus(recipe.data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ["projector", "llm"]}, "`train` names llm"),
        ({"optimizer__distill_weight": 0.5}, "distill_weight"),
        ({"data__text_path": "text"}, "data.text_path"),
        ({"batch__packing": True}, "packing"),
        ({"optimizer__ctc_weight": 0.0, "optimizer__ctc_merges": 100}, "nothing is aligned"),
    ],
)
def test_settings_that_need_the_llm_are_refused(root, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(tiny_recipe(root, "unused", **({"optimizer__ctc_weight": 1.0} | changes)))


@pytest.mark.parametrize("padding", ["trim", "full"])
def test_a_run_without_the_llm_learns_to_read(root, padding, monkeypatch):
    llm_steps = []
    forward = LlasoForConditionalGeneration.forward
    monkeypatch.setattr(
        LlasoForConditionalGeneration, "forward", lambda *a, **k: llm_steps.append(1) or forward(*a, **k)
    )
    steps = 60 if padding == "trim" else 3
    recipe = aligned(
        root,
        f"alone-{padding}",
        model__audio_padding=padding,
        model__projector_stride=2,
        model__projector_pooling="concatenate",
        model__projector_norm=True,
        optimizer__max_steps=steps,
        optimizer__learning_rate=1e-2,
        compute__encoder_cache_gb=0.1,
        watch__save_every=100,
    )
    result = train(recipe)
    assert not llm_steps
    model = LlasoForConditionalGeneration.from_pretrained(result.out)
    rows = (model.model.multi_modal_projector.norm.weight, model.get_input_embeddings().weight)
    loudness = [float(row.detach().square().mean().sqrt()) for row in rows]
    assert loudness[0] == pytest.approx(loudness[1], rel=1e-4)
    losses = [loss for _, loss, _, _ in curve(Path(result.out))]
    assert losses[-1] < (0.6 if padding == "trim" else 1.0) * losses[0]
    records = [json.loads(line) for line in (Path(result.out) / "history.jsonl").read_text().splitlines()]
    assert [r["rows"] for r in records if r["kind"] == "held_out"] == [4]
    if padding == "trim":
        assert result.wer is not None and result.wer < 0.95


def test_a_mixed_loss_is_the_share_of_both(root):
    def first(weight: float, data: str = "corpus") -> dict:
        out = Path(
            train(
                aligned(root, f"share-{data}-{weight}", weight, data__path=str(root / data), optimizer__max_steps=1)
            ).out
        )
        return next(
            r for r in map(json.loads, (out / "history.jsonl").read_text().splitlines()) if r["kind"] == "step"
        )

    plain, half, whole = first(0.0), first(0.5), first(1.0)
    assert half["loss"] == pytest.approx((plain["loss"] + whole["loss"]) / 2, rel=1e-5)
    plain, half = first(0.0, "mixed"), first(0.5, "mixed")
    assert half["tasks"]["IP"] == pytest.approx(plain["tasks"]["IP"])  # not aligned: the LLM alone
    assert half["tasks"]["ASR"][0] != pytest.approx(plain["tasks"]["ASR"][0])


def test_a_stopped_run_goes_on_as_if_undisturbed(root, monkeypatch):
    whole = Path(train(aligned(root, "whole")).out)
    out = root / "stopped"
    steps = {"left": 3}
    record = LlasoTrainer._record_step

    def stop(self, grad_norm):
        record(self, grad_norm)
        steps["left"] -= 1
        if steps["left"] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(LlasoTrainer, "_record_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(aligned(root, "stopped"))
    monkeypatch.undo()
    train(aligned(root, "stopped"))
    assert weights_digest(out) == weights_digest(whole)


def test_a_checkpoint_keeps_its_alignment_and_the_next_run_goes_on_with_it(root, monkeypatch):
    norm = {"model__projector_norm": True, "model__projector_stride": 2, "model__projector_pooling": "concatenate"}
    used: list[Alignment] = []
    keep = trainer_module.alignment_with
    monkeypatch.setattr(trainer_module, "alignment_with", lambda *a, **k: used.append(keep(*a, **k)) or used[-1])
    aligned_once = train(aligned(root, "kept", optimizer__max_steps=2, **norm))
    model = LlasoForConditionalGeneration.from_pretrained(aligned_once.out)
    kept = saved_alignment(model)
    assert kept is not None and torch.equal(kept.competing, used[0].competing) and kept.blank == used[0].blank

    def then(out: str, **changes) -> Alignment | None:
        recipe = tiny_recipe(root, out, optimizer__max_steps=1, **changes)
        recipe["model"] = {"checkpoint": aligned_once.out}
        return saved_alignment(LlasoForConditionalGeneration.from_pretrained(train(recipe).out))

    for carried in (then("carried"), then("mixed-in", optimizer__ctc_weight=0.5)):
        assert carried is not None and carried.scale == kept.scale and torch.equal(carried.competing, kept.competing)
    anew = then("anew", optimizer__ctc_weight=0.5, optimizer__ctc_merges=0)
    assert anew is not None and anew.merges == 0 and anew.scale != kept.scale
    never = train(tiny_recipe(root, "never-aligned", optimizer__max_steps=1)).out
    assert saved_alignment(LlasoForConditionalGeneration.from_pretrained(never)) is None


def test_audio_that_is_made_quieter_reads_as_before(root):
    recipe = load_recipe(aligned(root, "unused", model__projector_norm=True))
    model, processor = open_model(recipe)
    alignment = alignment_with(model, processor, open_corpus(recipe.data))
    norm = model.model.multi_modal_projector.norm
    norm.weight.data.mul_(5)
    vectors = torch.randn(6, norm.weight.numel())
    with torch.no_grad():
        before = alignment.log_probs(norm(vectors))
        loudness = match_loudness(model)
        save_alignment(model, alignment, loudness)
        after = saved_alignment(model)
        assert after is not None and loudness == pytest.approx(5, rel=0.05)
        torch.testing.assert_close(after.log_probs(norm(vectors)), before)
