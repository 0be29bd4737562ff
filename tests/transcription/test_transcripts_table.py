"""`python -m benchmarks transcripts`: rates by source are those of its transcripts, and clips are shown by rule."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jiwer
import pytest
from support.tiny_training import row, save_backbones, save_corpus, tiny_recipe

from benchmarks import transcripts
from llaso.training.run.held_out import normalize, word_errors
from llaso.training.run.train import train

ALIGNED = {"optimizer__ctc_weight": 1.0, "optimizer__max_steps": 20}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transcripts")
    save_backbones(folder)
    rows = [row(i) for i in range(12)]
    save_corpus(folder / "corpus", {"train": rows, "validation": rows[:2]})
    (folder / "clips").mkdir()
    lines = []
    for number, one in enumerate(rows):
        (folder / f"clips/{number}.wav").write_bytes(one["audio"][0]["bytes"])
        said = {"audio": f"clips/{number}.wav", "text": one["target"], "speaker": f"s{number % 4}"}
        lines.append(json.dumps(said | {"source": "readers" if number % 3 else "talkers"}))
    (folder / "dev.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("merges", [None, 20])
def test_rates_are_those_of_the_transcripts(root, tmp_path, capsys, monkeypatch, merges):
    monkeypatch.setattr(transcripts, "TOKENS", 8)
    changes = ALIGNED | {"optimizer__ctc_merges": merges}
    aligned = train(tiny_recipe(root, f"aligned-{merges}", model__projector_stride=1, **changes))
    speech, corpus = str(root / "dev.jsonl"), str(root / "corpus")
    transcripts.main([aligned.out, "--speech", speech, "--ctc-corpus", corpus, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "transcripts.json").read_text())
    assert list(record["rates"]) == ["LLaSO", "best path"] and len(record["clips"]) == 12
    for program, of_sources in record["rates"].items():
        counted = record["wrong_by_count"][program]
        assert {name: one["words"] for name, one in of_sources.items()} == {
            name: sum(words for _, words in ranges) for name, ranges in counted.items()
        }
        assert {name: one["clips"] for name, one in of_sources.items()} == {"talkers": 4, "readers": 8}
        for name, one in of_sources.items():
            counts = [word_errors(clip[program], clip["text"]) for clip in record["clips"] if clip["source"] == name]
            errors, words = map(sum, zip(*counts, strict=True))
            assert (one["errors"], one["words"], one["speakers"]) == (errors, words, 4)
            assert one["wer"] == pytest.approx(errors / words)
            texts = [(clip["text"], clip[program]) for clip in record["clips"] if clip["source"] == name]
            said, heard = (list(map(normalize, side)) for side in zip(*texts, strict=True))
            assert one["cer"] == pytest.approx(jiwer.cer(said, heard))
            assert one["interval"][0] <= one["wer"] <= one["interval"][1]
            less = record["rates"]["LLaSO"][name]["wer"] - record["rates"]["best path"][name]["wer"]
            found = record["differences"]["best path"][name]
            assert found["difference"] == pytest.approx(less)
            assert found["interval"][0] <= less <= found["interval"][1]
    held_out = [
        word_errors(clip["best path"], clip["text"])
        for clip in record["clips"]
        if clip["audio"][-6:-4] in ("/0", "/1")
    ]
    errors, words = map(sum, zip(*held_out, strict=True))
    assert len(held_out) == 2 and (errors / words, words) == (
        aligned.wer,
        aligned.wer_words,
    )  # as the training read it
    assert (tmp_path / "transcripts.md").read_text().strip() in capsys.readouterr().out


def test_audio_padding_gives_what_a_checkpoint_saved_with_it_gives(root, tmp_path):
    """The copy has no recipe: `ctc_alignment` in its config.json is enough for the best path."""
    recipe = tiny_recipe(root, "trimmed", model__projector_stride=1, model__audio_padding="trim", **ALIGNED)
    trimmed = Path(train(recipe).out)
    full = tmp_path / "full"
    full.mkdir()
    for file in ("config.json", "processor_config.json"):
        text = (trimmed / file).read_text()
        assert '"audio_padding": "trim"' in text
        (full / file).write_text(text.replace('"audio_padding": "trim"', '"audio_padding": "full"'))
    for pattern in ("model*", "tokenizer*", "*.jinja"):
        for file in trimmed.glob(pattern):
            (full / file.name).symlink_to(file)
    heard = {}
    for name, (checkpoint, padding) in {
        "by option": (trimmed, "full"),
        "by its files": (full, None),
        "as trained": (trimmed, None),
    }.items():
        options = [] if padding is None else ["--audio-padding", padding]
        arguments = [str(checkpoint), "--speech", str(root / "dev.jsonl"), "--ctc-corpus", str(root / "corpus")]
        transcripts.main([*arguments, "--best-path-only", *options, "--out", str(tmp_path / name)])
        record = json.loads((tmp_path / name / "transcripts.json").read_text())
        assert list(record["rates"]) == ["best path"] and not record["differences"]
        heard[name] = [clip["best path"] for clip in record["clips"]]
    assert heard["by option"] == heard["by its files"] != heard["as trained"]


def test_a_difference_is_surer_than_the_rates_if_both_err_for_the_same_speakers():
    clips = [transcripts.ManifestClip(Path(f"{n}.wav"), "a b c d", "speech", f"s{n // 2}") for n in range(8)]
    one = ["a b c d"] * 4 + ["a x x x"] * 4  # half of the speakers are hard
    other = ["a b c x"] * 4 + ["x x x x"] * 4  # one word worse in each clip
    (rate,) = transcripts.rates(clips, one).values()
    (found,) = transcripts.differences(clips, one, other).values()
    assert rate["interval"][1] - rate["interval"][0] > 0.3
    assert found["difference"] == -0.25 and found["interval"] == pytest.approx([-0.25, -0.25])


def test_the_recipe_of_an_alignment_is_found_behind_later_stages(root):
    first = train(tiny_recipe(root, "first", optimizer__ctc_weight=1.0, optimizer__max_steps=1))
    later = tiny_recipe(root, "later", train=["llm"], optimizer__max_steps=1)
    later["model"] = {"checkpoint": first.out}
    second = train(later)
    assert transcripts.aligned_by(second.out).out == first.out
    never = train(tiny_recipe(root, "never", optimizer__max_steps=1))
    for checkpoint in (never.out, "someone/on-the-hub"):
        with pytest.raises(ValueError, match=f"{checkpoint} has no best path.*--aligned"):
            transcripts.aligned_by(checkpoint)


def test_wrong_words_are_counted_by_how_often_the_training_has_them():
    clips = [
        transcripts.ManifestClip(Path("0.wav"), "Never, one often", "speech", "s"),
        transcripts.ManifestClip(Path("1.wav"), "often often", "speech", "s"),
    ]
    trained = Counter({"one": 1, "four": 4, "often": 20})
    heard = ["ever one often more", "often"]  # one word replaced, one added, one left out
    counted = transcripts.wrong_by_count(clips, heard, trained)
    assert counted == {"speech": [(1, 1), (0, 1), (0, 0), (1, 3)]}
    assert transcripts.count_table({"LLaSO": counted}).splitlines() == [
        "| words wrong, by how often the training says them | 0 | 1 to 4 | 5 to 19 | 20 and more |",
        "| --- | --- | --- | --- | --- |",
        "| speech, LLaSO | 100% of 1 | 0% of 1 | – | 33% of 3 |",
    ]


def test_the_best_the_median_and_the_worst_clip_are_shown(root):
    clips = transcripts.read_clips(root / "dev.jsonl", most=3)
    assert [clip.source for clip in clips] == ["talkers"] * 3 + ["readers"] * 3
    right, half, wrong = "a b", "a x", "x y"
    clips = [transcripts.ManifestClip(Path(f"{n}.wav"), "a b", "speech", "s") for n in range(5)]
    shown = transcripts.shown(clips, {"one": [half, wrong, right, half, half], "two": ["|"] * 5}, "one")
    lines = shown.splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == ["best: 2.wav", "median: 3.wav", "worst: 1.wav"]
    assert {len(line.split("|")) for line in lines} == {7}


def test_a_row_without_a_transcript_is_named(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav", "text": "a"}\n{"audio": "b.wav"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: a row is an object with `audio`"):
        transcripts.read_clips(tmp_path / "rows.jsonl")


def test_mistakes_are_told_before_anything_is_transcribed(root, tmp_path, monkeypatch):
    """And earlier results are not replaced unasked."""
    monkeypatch.setattr(transcripts, "by_model", lambda *_: pytest.fail("transcribed"))
    arguments = ["a-model", "--speech", str(root / "dev.jsonl"), "--out"]
    (tmp_path / "file").touch()
    for options, message in (
        ([str(tmp_path / "file")], "File exists|is a file"),
        ([str(tmp_path / "new"), "--whisper", "nowhere"], "--whisper nowhere: no Whisper was found"),
        ([str(tmp_path / "new"), "--ctc-corpus", str(tmp_path / "none")], "none"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            transcripts.main([*arguments, *options])
    (tmp_path / "transcripts.json").write_text("{}")
    with pytest.raises(ValueError, match=r"transcripts\.json exists. .*--overwrite"):
        transcripts.main([*arguments, str(tmp_path)])
    with pytest.raises(SystemExit):
        transcripts.main([*arguments, str(tmp_path / "new"), "--clips", "-1"])
