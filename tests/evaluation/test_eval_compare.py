"""Comparisons: the right verdict if there is a difference, none if there is none, and honest about pairing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from eval_suite.compare import compare, compare_pair, holm, scored_systems, two_sided_p, verdict
from eval_suite.panel import load_panel
from eval_suite.score import score_rows
from eval_suite.scored_rows import Scored
from llaso.cli import main


def system(folder: Path, right: float, n: int = 120, repeats: int = 1, seed: int = 0, skip: int = 0) -> Path:
    """A folder of gender and spoken-command answers, a share of them right; rows come in clusters of `repeats`."""
    folder.mkdir(parents=True, exist_ok=True)
    luck = random.Random(seed)
    for task, choices in (("SGC", ["Male", "Female"]), ("SCR", ["yes", "no", "up", "down"])):
        lines = []
        for index in range(n):
            if index % repeats == 0:
                good = luck.random() < right
            wanted = choices[index // repeats % len(choices)]
            row = {"id": str(index), "file": f"made_{task}", "task": task, "modality": "text_audio", "source": "made"}
            row |= {"prediction": wanted if good else "?", "reference": wanted, "choices": choices, "error": None}
            lines.append(json.dumps(row | {"cluster": str(index // repeats)}))
        (folder / f"made_{task}.jsonl").write_text("\n".join(lines[skip:]))
    return folder


def test_a_planted_difference_is_found(tmp_path, capsys):
    good, bad = system(tmp_path / "good", 0.9), system(tmp_path / "bad", 0.5, seed=1)
    out = tmp_path / "comparison.json"
    assert main(["eval", "compare", str(good), str(bad), "--resamples", "2000", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    pair = json.loads(out.read_text())["pairs"][0]
    assert pair["rows"] == 240 and (pair["only_a"], pair["only_b"]) == (0, 0)
    for task in ("SGC", "SCR"):
        result = pair["tasks"][task]
        assert result["low"] < result["difference"] < result["high"] and result["low"] > 0
        assert result["p"] <= result["p_holm"] < 0.05
        assert result["verdict"].startswith("good above bad in accuracy by .") and result["verdict"] in said
        assert result["verdict"].endswith("good is better")
    assert pair["overall"]["score"] == "skill" and pair["overall"]["low"] > 0


def test_a_system_is_no_better_than_itself(tmp_path):
    pair = compare([system(tmp_path / "one", 0.8), system(tmp_path / "two", 0.8)], resamples=300)["pairs"][0]
    for result in (*pair["tasks"].values(), pair["overall"]):
        assert result["difference"] == result["low"] == result["high"] == 0 and result["p"] == 1
        assert result["verdict"].startswith("no difference shown")


def test_equal_systems_are_rarely_told_apart(tmp_path):
    """Two systems of one quality: at most a few of 40 comparisons may call a difference at 5 %."""
    panel = load_panel("strict")
    found = 0
    for seed in range(20):
        pair = scored_systems(
            [system(tmp_path / f"{side}{seed}", 0.7, n=60, seed=2 * seed + side) for side in range(2)]
        )
        result = compare_pair(*pair, seed=seed, resamples=400, panel=panel)
        found += sum(task["p"] < 0.05 for task in result["tasks"].values())
    assert found <= 6


def test_repeats_of_a_recording_are_not_new_evidence(tmp_path):
    width = {}
    for repeats in (1, 10):
        folders = [
            system(tmp_path / f"{side}{repeats}", 0.8 - 0.3 * side, n=40 * repeats, repeats=repeats, seed=side)
            for side in range(2)
        ]
        result = compare(folders, resamples=1_000)["pairs"][0]["tasks"]["SGC"]
        width[repeats] = result["high"] - result["low"]
    assert width[10] == pytest.approx(width[1], rel=0.15)


def test_only_shared_rows_count(tmp_path):
    pair = compare([system(tmp_path / "all", 0.8), system(tmp_path / "part", 0.8, skip=20)], resamples=50)["pairs"][0]
    assert (pair["rows"], pair["only_a"], pair["only_b"]) == (200, 40, 0)


def test_three_systems_make_three_pairs(tmp_path):
    folders = [system(tmp_path / name, 0.8, n=12) for name in "abc"]
    assert [(pair["a"], pair["b"]) for pair in compare(folders, resamples=20)["pairs"]] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_what_cannot_be_compared(tmp_path):
    one = system(tmp_path / "one", 0.8, n=12)
    with pytest.raises(ValueError, match="at least two"):
        compare([one])
    with pytest.raises(ValueError, match="systems of one name"):
        compare([one, one])
    with pytest.raises(ValueError, match="at least one resample"):
        compare([one, system(tmp_path / "two", 0.8, n=12)], resamples=0)
    other = system(tmp_path / "other", 0.8, n=12)
    text = (other / "made_SGC.jsonl").read_text().replace('"reference": "Female"', '"reference": "Male"')
    (other / "made_SGC.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"made_SGC\.jsonl:2 and .*made_SGC\.jsonl:2: the same id"):
        compare([one, other])
    disjoint = system(tmp_path / "disjoint", 0.8, n=12)
    for path in disjoint.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"id": "', '"id": "x'))
    with pytest.raises(ValueError, match="share no rows"):
        compare([one, disjoint])


def test_holm_correction_agrees_with_a_worked_example():
    # Worked by hand: 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]


def test_two_sided_p_values_from_bootstrap_draws():
    assert two_sided_p(np.full(999, 0.3)) == pytest.approx(2 / 1000)
    assert two_sided_p(np.array([1.0, -1.0] * 50)) == 1
    assert two_sided_p(np.array([np.nan, 1.0])) == 1


def test_verdicts_name_the_better_system_or_none():
    said = verdict("Kimi-Audio", "LLaSO-Base", "WER", -0.028, -0.034, -0.027, 0.001, "lower")
    assert said == "Kimi-Audio below LLaSO-Base in WER by .028 [.027, .034]: Kimi-Audio is better"
    said = verdict("a", "b", "accuracy", -0.2, -0.3, -0.1, 0.5, "higher")
    assert said == "no difference shown between a and b in accuracy: -.200 [-.300, -.100]"
    assert verdict("a", "b", "mean absolute error", 1.5, 1.25, 2, 0.01, "lower").endswith(
        "1.500 [1.250, 2.000]: b is better"
    )


def test_normalization_decides_who_is_first(official_outputs, tmp_path):
    """The released order of first and second reverses, and both orders are significant."""
    results = {}
    for protocol in ("strict", "paper"):
        pair = []
        for name in ("Kimi-Audio", "LLaSO-Base"):
            folder = tmp_path / protocol / name
            folder.mkdir(parents=True)
            (answered,) = (official_outputs / name).glob("ASR_test.json*")
            (folder / answered.name).symlink_to(answered)
            scored = score_rows(folder, protocol=protocol, intervals=False)
            pair.append(Scored(scored.content, {"ASR_test": scored.rows["ASR_test"][::3]}))
        found = compare_pair(*pair, resamples=1_000, seed=0, panel=load_panel(protocol))
        results[protocol] = found["tasks"]["ASR"]
    assert results["strict"]["high"] < 0 < results["paper"]["low"]
    assert results["strict"]["verdict"].startswith("Kimi-Audio below LLaSO-Base in WER")


def test_scores_are_compared_as_they_were_read(tmp_path):
    """Comparing scores.json gives what comparing the folders gives, and looks at no answer again."""
    folders = [system(tmp_path / "good", 0.9), system(tmp_path / "bad", 0.5, seed=1)]
    files = [score_rows(folder, resamples=10).write(tmp_path / f"{folder.name}.json") for folder in folders]
    expected = compare(folders, resamples=200)
    for folder in folders:
        for path in folder.iterdir():
            path.unlink()
    assert compare(files, resamples=200) == expected
    with pytest.raises(ValueError, match="good.json: scored under strict, but paper is compared"):
        compare(files, protocol="paper")


def test_a_normalization_other_than_the_default_is_kept(tmp_path):
    """What was read decides: nothing is normalized a second time, by another rule."""
    for name, said in (("a", "Hello, World!"), ("b", "hello world")):
        (tmp_path / name).mkdir()
        row = {"id": "0", "file": "f", "task": "ASR", "modality": "audio", "source": "made", "prediction": said}
        row |= {"reference": "Hello, World!", "choices": [], "error": None}
        (tmp_path / name / "f.jsonl").write_text(json.dumps(row))
    files = {
        (name, rule): score_rows(tmp_path / name, normalization=rule).write(tmp_path / f"{name}-{rule}.json")
        for name in "ab"
        for rule in ("whisper_english", "none")
    }
    values = {
        rule: compare([files["a", rule], files["b", rule]], resamples=10)["pairs"][0]["tasks"]["ASR"]["b"]
        for rule in ("whisper_english", "none")
    }
    assert values == {"whisper_english": 0, "none": 1}
    with pytest.raises(ValueError, match="several normalizations"):
        compare([files["a", "none"], files["b", "whisper_english"]])


def test_scores_without_their_rows_are_refused(tmp_path, capsys):
    folders = [system(tmp_path / name, 0.8, n=12) for name in "ab"]
    first, second = [score_rows(one, resamples=10).write(tmp_path / f"{one.name}.json") for one in folders]
    rows = tmp_path / "a.rows.jsonl"
    kept = rows.read_text()
    rows.write_text(kept.replace('"yes"', '"no"'))
    with pytest.raises(ValueError, match=r"a\.rows\.jsonl: not the rows that .*a\.json was computed from; score the"):
        compare([first, second])
    rows.unlink()
    assert main(["eval", "compare", str(first), str(second)]) == 2
    assert "are missing" in capsys.readouterr().err
    old = json.loads(second.read_text()) | {"schema": 1}
    second.write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"b\.json: schema 1, .*`llaso eval score FOLDER --out scores\.json`"):
        compare([second, folders[0]])


def test_a_file_that_is_compared_is_not_replaced(tmp_path, capsys):
    scores = tmp_path / "scores.json"
    scores.write_text("{}", encoding="utf-8")
    assert main(["eval", "compare", str(scores), str(scores), "--out", str(scores), "--overwrite"]) == 2
    assert "is a file that is read" in capsys.readouterr().err
    assert scores.read_text(encoding="utf-8") == "{}"
