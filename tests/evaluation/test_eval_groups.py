"""Scores by group, repeated answers, and wordings: planted gaps are found, chance is not, and parts add up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_eval import chat_server, default_rows, write_corpus

from eval_suite.corpus import EvalCorpus
from eval_suite.generate import generate
from eval_suite.groups import attributes, group_scores, worst_groups
from eval_suite.repeats import repeat_scores, variance_parts
from eval_suite.report import write_report
from eval_suite.score import score_rows
from llaso.cli import main


def answered(folder: Path, right: dict[str, float], n: int = 200, seed: int = 0, tasks=("SCR",)) -> Path:
    """Spoken commands of speakers with two accents, a share of each right."""
    folder.mkdir(parents=True, exist_ok=True)
    luck, labels = random.Random(seed), ["yes", "no", "up", "down"]
    for task in tasks:
        lines = []
        for index in range(n):
            accent = list(right)[index % len(right)]
            wanted = labels[index % 4]
            row = {"id": str(index), "file": f"f_{task}", "task": task, "modality": "text_audio", "source": "made"}
            row |= {"prediction": wanted if luck.random() < right[accent] else "?", "reference": wanted, "error": None}
            row |= {"choices": labels, "cluster": f"clip-{index}", "attributes": {"accent": accent, "voice": "v"}}
            lines.append(json.dumps(row))
        (folder / f"f_{task}.jsonl").write_text("\n".join(lines))
    return folder


def test_a_planted_gap_is_found_and_named(tmp_path, capsys):
    scored = score_rows(answered(tmp_path / "a", {"Irish": 0.9, "Welsh": 0.6, "Scottish": 0.85}, 300), intervals=False)
    made = group_scores(scored)
    assert list(made) == ["accent"]  # one voice separates nothing
    task = made["accent"]["tasks"]["SCR"]
    assert (task["gap"]["worst"], task["sizes"]["Welsh"]) == ("Welsh", 100)
    for group, one in task["groups"].items():
        rows = [row for row in scored.rows["f_SCR"] if row.row.attributes["accent"] == group]
        assert one["value"] == pytest.approx(np.mean([row.score for row in rows]))
        assert one["low"] < one["value"] < one["high"]
    gap = task["gap"]
    assert 0 < gap["low"] < gap["value"] < gap["high"] and gap["p_holm"] < 0.05
    (sentence,) = worst_groups(made)
    assert sentence.startswith("SCR by accent: Welsh is worst, accuracy 0.")
    assert main(["eval", "groups", str(tmp_path / "a"), "--by", "accent", "--out", str(tmp_path / "g.json")]) == 0
    assert f"sure: {sentence}" in capsys.readouterr().out
    assert json.loads((tmp_path / "g.json").read_text())["groups"] == made
    assert main(["eval", "groups", str(tmp_path / "a"), "--by", "height"]) == 2
    assert "no row has the attribute height; there are accent, voice" in capsys.readouterr().err


def test_equal_groups_are_rarely_called_unequal(tmp_path):
    """Four groups of one quality in two tasks, twelve pairs each time: corrected, few of 25 runs may find a gap."""
    found = 0
    for seed in range(25):
        folder = answered(tmp_path / str(seed), dict.fromkeys("abcd", 0.7), 160, seed, ("SCR", "IP"))
        found += bool(worst_groups(group_scores(score_rows(folder, intervals=False), resamples=400)))
    assert found <= 4


def test_small_groups_are_counted_not_compared(tmp_path):
    folder = answered(tmp_path / "a", {"Irish": 0.9, "Welsh": 0.5}, 40)
    lines = [json.loads(line) for line in (folder / "f_SCR.jsonl").read_text().split("\n")]
    for line in lines[:3]:
        line["attributes"] = {"accent": "Manx"}
    lines[3]["attributes"] = {}
    (folder / "f_SCR.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = group_scores(score_rows(folder, intervals=False), resamples=50)["accent"]
    assert made["unknown"] == 1 and made["tasks"]["SCR"]["groups"]["Manx"] is None
    assert made["tasks"]["SCR"]["sizes"]["Manx"] == 3


def test_labels_of_a_recording_tell_its_speaker(official_outputs):
    """VocalSound's clips are asked for gender, age and sound: the answers to the others can be split by gender."""
    scored = score_rows(official_outputs / "LLaSO-Base", intervals=False)
    known = attributes(scored)
    genders = [row.quantities["label"] for row in scored.rows["vctk_gender_classification_test"]]
    told = [
        known["vctk_gender_classification_test", row.row.id]["gender"]
        for row in scored.rows["vctk_gender_classification_test"]
    ]
    assert told == genders
    made = group_scores(scored, ["gender"], resamples=100)["gender"]
    assert set(made["tasks"]) == {"SGC", "VSC", "AR_years"} and made["unknown"] == 9_703
    age = made["tasks"]["AR_years"]
    rows = [one for one in scored.rows["vocalsound_age_prediction_test"]]
    women = [one.score for one in rows if known[one.row.file, one.row.id].get("gender") == "female"]
    assert age["groups"]["female"]["value"] == pytest.approx(np.mean(women)) and age["gap"]["worst"] == "female"


# Repeats


def test_samples_are_rows_of_their_own(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", default_rows(6))

    def coin(requests):
        return ["male" if request.row.sample % 2 else "female" for request in requests]

    out = generate(coin, corpus, tmp_path / "out", temperature=0.7, samples=3, batch_size=4, progress=False)
    lines = [json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text().split("\n") if line]
    assert len(lines) == 18 and len({line["id"] for line in lines}) == 18
    by_id = {line["id"]: line for line in lines}
    assert by_id["row-001#2"]["repeat_of"] == "row-001" and "repeat_of" not in by_id["row-001"]
    assert by_id["row-001"]["attributes"] == {"style": "standardised", "wording": "SGC/01", "voice": "sine"}
    assert by_id["row-001"]["cluster"] == by_id["row-001#1"]["cluster"]
    made = repeat_scores(score_rows(out, intervals=False))["SGC"]["samples"]
    assert (made["questions"], made["answers"], made["agreement"]) == (3, 9, 1 / 3)
    assert made["majority"] == made["first"] == 1 / 3
    with pytest.raises(ValueError, match="all alike; give a temperature"):
        generate(coin, corpus, tmp_path / "no", samples=3, progress=False)


def test_more_samples_keep_the_answers_already_there(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", default_rows(6))
    asked: list[str] = []

    def count(requests):
        asked.extend(request.row.id for request in requests)
        return ["male"] * len(requests)

    options = {"temperature": 0.7, "batch_size": 1, "progress": False}
    generate(count, corpus, tmp_path / "out", **options)
    generate(count, corpus, tmp_path / "out", samples=2, **options)
    assert len(asked) == 12 and sum("#1" in one for one in asked) == 6


def test_a_server_gets_a_seed_for_each_sample(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", default_rows(2))
    with chat_server(lambda body: (200, "male")) as (url, received):
        generate("m", corpus, tmp_path / "out", endpoint=url, temperature=1.0, samples=2, seed=5, progress=False)
    assert sorted(one["body"]["seed"] for one in received) == [5, 5, 6, 6]


def test_repeated_rows_differ_in_what_they_draw(tmp_path):
    corpus = EvalCorpus(write_corpus(tmp_path / "corpus", default_rows(2)))
    rows = corpus.asked(3)
    assert len({row.digest for row in rows}) == 6 and [row.sample for row in rows] == [0, 1, 2] * 2
    assert corpus.asked() == corpus.rows


def test_rows_are_asked_under_other_wordings_of_their_task(tmp_path, capsys):
    """A system that mishears one wording: it is named, and its answers do not agree with the others'."""
    rows = default_rows(48)
    for number, row in enumerate(rows):
        row["template_id"] = f"{row['task']}/{number % 12 // 4}"
        for part in row["messages"][0]["content"]:
            if part["type"] == "text":
                part["text"] = f"Wording {row['template_id']}"
    data = write_corpus(tmp_path / "corpus", rows)
    heard: dict[str, set[str]] = {}

    def listen(requests):
        for one in requests:
            heard.setdefault(one.row.id.partition("~")[0], set()).add(one.row.instruction)
        return ["female" if "SGC/2" in one.row.instruction else one.row.reference for one in requests]

    out = generate(listen, data, tmp_path / "out", wordings=3, progress=False)
    asked = {row["id"]: row for row in rows if row["modality"] == "text_audio"}
    assert all(len(heard[one]) == (3 if one in asked else 1) for one in heard)
    scored = score_rows(out, intervals=False)
    wording = group_scores(scored, ["wording"], resamples=400)["wording"]["tasks"]["SGC"]
    assert wording["gap"]["worst"] == "SGC/2" and wording["gap"]["p_holm"] < 0.05
    made = repeat_scores(scored)
    assert made["SGC"]["wordings"]["agreement"] == 1 / 3 and made["ASR"]["wordings"]["agreement"] == 1
    assert made["SGC"]["wordings"]["questions"] == 12
    assert main(["eval", "groups", str(out), "--by", "wording", "--resamples", "400"]) == 0
    assert "sure: SGC by wording: SGC/2 is worst, accuracy 0." in capsys.readouterr().out


def test_an_open_question_keeps_its_wording(tmp_path):
    rows = default_rows(8)
    for row in rows:
        row["task"] = "AQA"
    corpus = EvalCorpus(write_corpus(tmp_path / "corpus", rows))
    assert corpus.asked(wordings=4) == corpus.rows


def test_the_majority_outvotes_a_slip(tmp_path):
    row = {"file": "f", "task": "SGC", "modality": "audio", "source": "made", "reference": "Male", "error": None}
    row |= {"choices": ["Male", "Female"], "cluster": "c"}
    lines = []
    for index in range(4):
        for sample, said in enumerate(("Female", "Male", "male", "who knows")):
            extra = {"repeat_of": str(index)} if sample else {}
            lines.append(
                json.dumps(row | {"id": f"{index}#{sample}" if sample else str(index), "prediction": said} | extra)
            )
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    made = repeat_scores(score_rows(tmp_path, intervals=False))["SGC"]["samples"]
    assert (made["first"], made["majority"], made["agreement"]) == (0, 1, 1 / 6)
    assert made["between"] == 0 and made["within"] == pytest.approx(np.std([0, 1, 1, 0], ddof=1))


def test_wordings_of_one_question_are_set_against_each_other(tmp_path):
    """Two recordings, each asked in three wordings; one of them is heard differently under one wording."""
    row = {"file": "f", "task": "SGC", "modality": "audio", "source": "made", "reference": "Male", "error": None}
    row |= {"choices": ["Male", "Female"]}
    said = [("a", "Male", "Male", "Female"), ("b", "Male", "Male", "Male")]
    lines = [
        json.dumps(
            row | {"id": f"{cluster}{n}", "cluster": cluster, "prediction": answer, "instruction": f"wording {n}"}
        )
        for cluster, *answers in said
        for n, answer in enumerate(answers)
    ]
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    made = repeat_scores(score_rows(tmp_path, intervals=False))["SGC"]
    assert made["samples"] is None and made["wordings"]["agreement"] == 4 / 6


@settings(max_examples=100, deadline=None)
@given(groups=st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=4), max_size=8))
def test_variance_parts_are_those_of_the_analysis_of_variance(groups):
    within, between = variance_parts(groups)
    if sum(map(len, groups)) == len(groups) or len(groups) < 2:
        assert within is None and between is None
        return
    square = sum(((np.array(group) - np.mean(group)) ** 2).sum() for group in groups)
    assert within == pytest.approx((square / (sum(map(len, groups)) - len(groups))) ** 0.5, abs=1e-9)
    assert between >= 0


def test_variance_parts_recover_what_was_planted():
    luck = np.random.default_rng(0)
    groups = [mean + luck.normal(0, 0.5, size=5) for mean in luck.normal(0, 2, size=400)]
    within, between = variance_parts(groups)
    assert within == pytest.approx(0.5, rel=0.05) and between == pytest.approx(2, rel=0.1)


def test_the_report_shows_gaps_and_repeats_and_leads_to_their_rows(tmp_path):
    scored = score_rows(answered(tmp_path / "a", {"Irish": 0.9, "Welsh": 0.5}, 300), resamples=300)
    content = json.loads((write_report([scored], tmp_path / "report") / "report.json").read_text())
    (system,) = content["groups"]
    (gap,) = system["gaps"]
    assert (gap["attribute"], gap["task"], gap["worst"]["group"]) == ("accent", "SCR", "Welsh")
    assert gap["gap"] == group_scores(scored, resamples=300)["accent"]["tasks"]["SCR"]["gap"]
    assert system["sure"] and system["sure"][0] in (page := (tmp_path / "report" / "index.html").read_text())
    assert "evidence/SCR.html#system=a&amp;protocol=strict&amp;group=accent%3A+Welsh" in page
    rows = (tmp_path / "report" / "evidence" / "SCR.html").read_text()
    assert rows.count('"accent":"Welsh"') == 150
    assert content["repeats"] == [] and 'id="repeats"' not in page

    corpus = write_corpus(tmp_path / "data", default_rows())
    luck = random.Random(0)
    folder = generate(
        lambda requests: [luck.choice(["male", "female"]) for _ in requests], corpus, tmp_path / "s", samples=3,
        temperature=1.0, progress=False,
    )  # fmt: skip
    report = write_report([score_rows(folder, resamples=20)], tmp_path / "repeated")
    repeats = {(one["task"], one["kind"]): one for one in json.loads((report / "report.json").read_text())["repeats"]}
    assert repeats["SGC", "samples"]["answers"] == 18 and repeats["SGC", "samples"]["questions"] == 6
    assert 'id="repeats"' in (report / "index.html").read_text()
