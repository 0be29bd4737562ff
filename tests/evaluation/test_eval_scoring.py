"""Scoring from folders: what is read, what is refused with file and line, what scores.json says, and the bootstrap."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import shared_fixture

from benchmarks.scoring import forget
from eval_suite import readers, strict
from eval_suite.intervals import Resampler
from eval_suite.panel import load_panel, parse_panel
from eval_suite.panel_build import build_panel
from eval_suite.readers import released_files
from eval_suite.score import score
from eval_suite.task_metrics import TASKS
from llaso.cli import main


def record(file: str, task: str, index: int, prediction, reference: str, **fields) -> dict:
    """One line of a predictions folder."""
    return {
        "id": f"{file}/{index}",
        "file": file,
        "task": task,
        "category": "paralinguistic",
        "modality": "text_audio",
        "source": "made",
        "prediction": prediction,
        "reference": reference,
        "choices": [],
        "error": None,
        "cluster": f"clip-{index}",
        "duration": 1.0,
    } | fields


def write(folder: Path, files: dict[str, list[dict]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "generation.json").write_text("{}", encoding="utf-8")
    return folder


GENDERS = {"choices": ["Male", "Female"]}


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> Path:
    """A predictions folder with most kinds of task, all outcomes, two formats and a failed row."""

    def some(task, pairs, **fields):
        name = f"made_{task}_{fields.get('modality', 'text_audio')}"
        return name, [record(name, task, index, *pair, **fields) for index, pair in enumerate(pairs)]

    failed = some("PP", [("60", "61"), ("C4", "60"), ("high", "3"), ("", "5"), ("1 2", "4"), (None, "9")])
    failed[1][5]["error"] = "out of memory"
    return write(
        tmp_path_factory.mktemp("tiny-model"),
        dict(
            (
                some("ASR", [("one two", "one two"), ("two\u2028three", "three"), ("", "four")]),
                some("SGC", [("Male.", "male"), ("both male and female", "Male"), ("?", "Female")], **GENDERS),
                some("SCR", [("two", "one"), ("One", "one")], choices=["one", "two"]),
                failed,
                some("AR", [("20-30", "26"), ("old", "70")]),
                some("EE", [("wake [time : five]", "wake [time : Five]"), ("[a", "[b : c]")]),
                some("AQA", [("Four.", "four"), ("two", "three")], modality="audio"),
                some("AQA", [("yes", "yes")], modality="audio_text"),
            )
        ),
    )


@pytest.fixture(scope="module")
def scores(predictions) -> dict:
    return score(predictions, resamples=200)


@pytest.fixture(scope="module")
def schema() -> dict:
    return json.loads((Path(readers.__file__).parent / "data" / "scores.schema.json").read_text(encoding="utf-8"))


# What scores.json says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("intervals", [True, False])
def test_output_follows_the_schema(predictions, schema, protocol, intervals):
    jsonschema.Draft202012Validator.check_schema(schema)
    content = score(predictions, protocol=protocol, intervals=intervals, resamples=50)
    jsonschema.validate(json.loads(json.dumps(content, allow_nan=False)), schema)
    bounds = [one["low"] for file in content["files"].values() for one in file["metrics"].values()]
    assert any(low is not None for low in bounds) == intervals


def test_outcomes_add_up(scores):
    assert scores["n"] == 21 and sum(scores["outcomes"].values()) == 21
    for part in (*scores["files"].values(), *scores["tasks"].values(), *scores["modalities"].values()):
        assert sum(part["outcomes"].values()) == part["n"]
        assert part["coverage"] == part["outcomes"]["answered"] / part["n"]
    assert scores["tasks"]["PP"]["outcomes"] == {
        "answered": 2, "abstained": 1, "ambiguous": 1, "malformed": 1, "error": 1,
    }  # fmt: skip


def test_metrics_by_task(scores):
    tasks = scores["tasks"]
    assert tasks["ASR"]["primary"]["metric"] == "wer" and tasks["ASR"]["primary"]["baseline"]["value"] == 1
    assert tasks["ASR"]["metrics"]["wer"]["value"] == 2 / 3  # "one two" is 12, "two three" is 23: one word each
    assert tasks["SGC"]["metrics"]["accuracy"]["value"] == 1 / 3
    assert tasks["SGC"]["metrics"]["accuracy_answered"] == {"value": 1.0, "n": 1, "low": 1.0, "high": 1.0}
    assert tasks["SGC"]["primary"]["baseline"] == {"metric": "majority_baseline", "value": 2 / 3}
    assert tasks["PP"]["metrics"]["mae"]["value"] == (1 + 0 + 124 + 122 + 123 + 118) / 6
    assert tasks["AR_years"]["metrics"]["mae"]["value"] == (1 + 52) / 2
    assert tasks["EE"]["primary"]["metric"] == "slot_f1"
    assert tasks["AQA"]["primary"]["metric"] == "exact_match"  # without judgements
    assert tasks["AQA"]["primary"]["value"] == 0.75  # mean of the files, not of the rows
    assert tasks["AQA"]["metrics"]["judge_score"] == {"value": None, "n": 0, "low": None, "high": None}
    judgements = scores["files"]["made_AQA_audio"]["judgements"]
    assert judgements == {"judged": 0, "missing": 2, "unusable_lines": 0}


def test_scores_are_grouped_by_format_and_category(scores):
    assert set(scores["modalities"]) == {"text_audio", "audio_text", "audio"}
    assert scores["modalities"]["audio"]["tasks"]["AQA"]["n"] == 2
    assert set(scores["categories"]) == {"linguistic", "semantic", "paralinguistic"}
    assert scores["categories"]["semantic"]["n"] == 3
    confusion = scores["files"]["made_SGC_text_audio"]["confusion"]
    assert confusion == {"labels": ["female", "male"], "counts": [[0, 0], [0, 1]], "unanswered": [1, 1]}


def test_intervals_hold_their_value(scores):
    for file in scores["files"].values():
        for name, one in file["metrics"].items():
            if one["low"] is not None and name != "top_answer_share":  # a maximum is biased upwards in resamples
                assert one["low"] <= one["value"] + 1e-12 and one["value"] <= one["high"] + 1e-12, name


def test_skill_needs_no_panel_and_clips(scores):
    skill = scores["normalized"]["skill"]
    assert skill["tasks"]["PP"]["value"] == 0 and skill["tasks"]["PP"]["unclipped"] < 0
    assert skill["tasks"]["ASR"]["value"] == skill["tasks"]["ASR"]["unclipped"] == pytest.approx(1 / 3)
    assert skill["value"] == pytest.approx(np.mean([one["value"] for one in skill["tasks"].values()]))
    panel = scores["normalized"]["panel"]
    assert panel["of_tasks"] == 20 and set(panel["tasks"]) == {"ASR", "SGC", "SCR", "PP", "EE"}
    assert scores["modalities"]["audio_text"]["normalized"]["panel"]["of_tasks"] == 1


def test_judgements_of_our_judge(predictions, tmp_path):
    folder = write(tmp_path / "judged", {})
    for path in predictions.glob("*AQA*.jsonl"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "judge").mkdir()
    first = {"id": "made_AQA_audio/0", "score": 4, "explanation": "fine"}
    other = {"id": "made_AQA_audio/1", "score": None, "explanation": "", "error": "timed out"}
    lines = "".join(json.dumps(one) + "\n" for one in (first, other))
    (folder / "judge" / "made_AQA_audio.jsonl").write_text(lines)
    content = score(folder, intervals=False)
    assert content["tasks"]["AQA"]["primary"]["metric"] == "judge_score"
    assert content["tasks"]["AQA"]["metrics"]["judge_score"]["value"] == 4
    assert content["files"]["made_AQA_audio"]["judgements"] == {"judged": 1, "missing": 1, "unusable_lines": 1}
    stale = first | {"prediction": "an earlier answer"}
    (folder / "judge" / "made_AQA_audio.jsonl").write_text(json.dumps(stale) + "\n")
    assert score(folder, intervals=False)["files"]["made_AQA_audio"]["judgements"]["judged"] == 0


@pytest.mark.parametrize(
    ("evaluation", "value"),
    [("Score: 4\nExplanation: good", 4), ("  Score: 5", 5), ("The answer says Score: 5", None), ("Score: 9", None)]
    + [("", None), (None, None), (True, None), (3, 3), (0, None), (float("nan"), None), ([], None)],
)
def test_scores_are_read_from_judge_texts(evaluation, value):
    assert readers.judge_score(evaluation) == value


def test_the_score_command_writes_scores_and_rows(predictions, tmp_path, capsys):
    out, rows = tmp_path / "deep" / "scores.json", tmp_path / "rows.jsonl"
    command = ["eval", "score", str(predictions), "--out", str(out), "--rows", str(rows), "--resamples", "50"]
    assert main([*command, "--system", "tiny"]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["system"] == "tiny" and content["settings"]["resamples"] == 50
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").split("\n") if line]
    assert Counter(line["outcome"] for line in lines) == Counter(
        {outcome: count for outcome, count in content["outcomes"].items() if count}
    )
    assert content["rows"]["file"].endswith("rows.jsonl") and sum(line["task"] == "ASR" for line in lines) == 3
    capsys.readouterr()
    assert main(["eval", "score", str(predictions), "--no-intervals", "--protocol", "paper"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "paper"
    assert main(["eval", "score", str(tmp_path / "nowhere")]) == 2
    assert main(["eval", "schema", "--out", str(tmp_path / "schema.json")]) == 0
    assert main(["eval", "panel", "show"]) == 0


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_answers_after_a_transcript_are_scored_as_if_they_were_alone(predictions, schema, tmp_path, protocol):
    """Each reply gets a transcript in front of it, some with the mark in it; the scores stay what they are."""
    marked = tmp_path / "marked"
    shutil.copytree(predictions, marked)
    before, count = ("Transcript: one two\nAnswer: ", "Answer: none. Transcript: no\nAnswer:\n"), 0
    for file in marked.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        for place, row in enumerate(rows):
            if row["prediction"] is not None and row.get("error") is None:
                row["prediction"] = before[place % 2] + row["prediction"].strip()
                count += 1
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plain = score(predictions, protocol=protocol, intervals=False, system="tiny")
    found = score(marked, protocol=protocol, intervals=False, system="tiny", answer_after="Answer:")
    jsonschema.validate(found, schema)
    assert found["settings"].pop("answer_after") == "Answer:" and found["settings"].pop("replies_with_mark") == count
    assert found == plain
    assert score(marked, protocol=protocol, intervals=False, system="tiny") != plain


def test_a_reply_without_the_mark_is_the_answer(predictions):
    plain, found = (score(predictions, intervals=False, answer_after=mark) for mark in (None, "Answer:"))
    assert found["settings"].pop("replies_with_mark") == 0 and found["settings"].pop("answer_after")
    assert found == plain


def test_same_seed_same_bytes(predictions, scores):
    assert json.dumps(score(predictions, resamples=200)) == json.dumps(scores)
    assert json.dumps(score(predictions, resamples=200, seed=1)) != json.dumps(scores)


# Bad input -------------------------------------------------------------------------------------------------------

GOOD = record("f", "SGC", 0, "male", "Male", **GENDERS)


def without(key: str) -> dict:
    return {name: value for name, value in GOOD.items() if name != key}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "{broken"], r"f\.jsonl:2: broken or truncated JSON"),
        ([json.dumps(GOOD)[:-20]], r"f\.jsonl:1: broken or truncated JSON"),
        (["[1]"], r"f\.jsonl:1: expected an object"),
        ([without("prediction")], r"f\.jsonl:1: no field 'prediction'"),
        ([without("reference")], r"f\.jsonl:1: no field 'reference'"),
        ([GOOD | {"prediction": 3}], r"f\.jsonl:1: 'prediction' must be text, found int"),
        ([GOOD | {"prediction": None}], r"f\.jsonl:1: 'prediction' must be text, found NoneType"),
        ([GOOD | {"error": 3}], r"f\.jsonl:1: 'error' must be"),
        ([json.dumps(GOOD | {"duration": float("nan")})], r"f\.jsonl:1: NaN is not a JSON number"),
        ([GOOD | {"task": "XYZ"}], r"f\.jsonl:1: unknown task 'XYZ'"),
        ([GOOD | {"modality": "smell"}], r"f\.jsonl:1: unknown modality"),
        ([GOOD | {"choices": "Male"}], r"f\.jsonl:1: 'choices' must be a list"),
        ([GOOD | {"choices": []}], r"f\.jsonl:1: SGC is a closed set"),
        ([GOOD | {"choices": ["Female", "Other"]}], r"f\.jsonl:1: the reference 'Male' names none"),
        ([GOOD | {"choices": ["Male", "male."]}], r"f\.jsonl:1: labels repeat"),
        ([GOOD, GOOD], r"f\.jsonl:2: id 'f/0' of f was already used at .*f\.jsonl:1"),
        ([GOOD, record("f", "ASR", 1, "a", "a")], r"f mixes tasks or modalities"),
        ([record("f", "PP", 0, "60", "C4")], r"f\.jsonl:1: the reference 'C4' of PP is not a number"),
        ([record("f", "PP", 0, "60", "nan")], r"is not a number"),
        ([record("f", "PSSL", 0, "8", "good")], r"f\.jsonl:1: the reference of PSSL holds no scores"),
        (["[" * 100_000], r"f\.jsonl:1: "),
        ([], r"f\.jsonl: no records"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, message, capsys):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        score(tmp_path, intervals=False)
    assert main(["eval", "score", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("llaso: error: ")


def released_row(**fields) -> dict:
    turns = [{"from": "human", "value": "Male or female?<audio>"}, {"from": "gpt", "value": "Male."}]
    return {"voice": ["a\\b.wav"], "conversations": turns, "answer": "male"} | fields


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vctk_gender_classification_test.json", '[{"a": 1},', r"_test\.json:1: broken or truncated JSON"),
        ("vctk_gender_classification_test.json", "{}", r"expected an array"),
        ("vctk_gender_classification_test.json", "[1]", r"record 0: expected an object"),
        ("vctk_gender_classification_test.json", "[]", r"no records"),
        (
            "vctk_gender_classification_test.json",
            json.dumps([released_row(result="x")]),
            r"record 0: expected the model",
        ),
        ("vctk_gender_classification_test.json", json.dumps([released_row(answer=None)]), r"'answer' must be text"),
        (
            "vctk_gender_classification_test.json",
            json.dumps([released_row(conversations=[])]),
            r"'conversations' must",
        ),
        ("vctk_gender_classification_test.json", json.dumps([released_row(voice=None)]), r"'voice' must be"),
        ("vctk_accent_classification_test.json", json.dumps([released_row()]), r"reference 'Male.' names none"),
        ("something_test.json", "[]", r"not one of the 44 released files"),
        ("something_test.jsonl", json.dumps(released_row()), r"not one of the 44 released files"),
    ],
)
def test_bad_released_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        readers.read(tmp_path)


def test_folders_without_answers(tmp_path):
    with pytest.raises(ValueError, match="no answers here"):
        readers.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        readers.read(tmp_path / "missing")
    (tmp_path / "f.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        readers.read(tmp_path)


def test_one_file_in_two_forms(tmp_path):
    for ending, text in ((".json", json.dumps([released_row()])), (".jsonl", json.dumps(released_row()))):
        (tmp_path / f"vctk_gender_classification_test{ending}").write_text(text)
    with pytest.raises(ValueError, match="lies here twice"):
        readers.read(tmp_path)


def test_rows_of_released_files_are_read(tmp_path):
    """Any prediction field, either slash, both microphones of one utterance as one recording."""
    fields = [{"answer": "male"}, {"result": "male"}, {"prediction": "male"}]
    rows = []
    for index, field in enumerate(fields):
        row = released_row(voice=[f"vctk/p1\\p1_001_mic{index % 2 + 1}.flac"])
        del row["answer"]
        rows.append(row | field)
    (tmp_path / "vctk_gender_classification_test.json").write_text(json.dumps(rows))
    read = readers.read(tmp_path).files["vctk_gender_classification_test"]
    assert [row.prediction for row in read] == ["male"] * 3
    assert {row.cluster for row in read} == {"vctk/p1/p1_001.flac"} and read[0].source == "vctk"


def test_manifest_of_released_files():
    assert len(released_files()) == 44 and sum(facts["rows"] for facts in released_files().values()) == 10_605
    for file, facts in released_files().items():
        kind = TASKS[facts["task"]].kind
        assert ("choices" in facts) == (kind in ("closed", "label")), file


def test_manifest_labels_are_the_prompts(official_outputs):
    """Every label of a closed set stands in the prompts, save for two prompts with a slip or without a list."""
    without_label = Counter()
    for file, facts in released_files().items():
        if TASKS[facts["task"]].kind != "closed":
            continue
        rows = json.loads((official_outputs / "LLaSO-Base" / f"{file}.json").read_text(encoding="utf-8"))
        assert len(rows) == facts["rows"]
        labels = readers.label_set(facts["task"], tuple(facts["choices"]))
        for prompt, count in Counter(row["conversations"][0]["value"] for row in rows).items():
            missing = set(labels.labels) - set(labels.find(prompt))
            without_label[file] += count if missing else 0
    assert {file: count for file, count in without_label.items() if count} == {
        "CREMAD_ER_classification_test": 8,
        "common-voice_gender_classification_test": 4,
    }


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.sampled_from([*GOOD, "conversations", "voice", "answer"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(KEYS, JSON), max_size=2),
    good=st.integers(1, 4),
    cut=st.none() | st.integers(0, 400),
    released=st.booleans(),
)
def test_reading_never_crashes_and_loses_no_row(tmp_path, changes, good, cut, released):
    """Any damage ends in a message that names the folder, or in all rows read and counted."""
    name = "vctk_gender_classification_test" if released else "f"
    lines = [released_row() if released else GOOD | {"id": str(index)} for index in range(good)]
    lines[-1] = lines[-1] | dict(changes)
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode("utf-8", "surrogatepass")
    (tmp_path / f"{name}.jsonl").write_bytes(text if cut is None else text[:cut])
    for path in tmp_path.glob("*.jsonl"):
        if path.stem != name:
            path.unlink()
    try:
        answers = readers.read(tmp_path)
    except ValueError as error:
        assert str(tmp_path) in str(error)
        return
    kept = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    assert sum(len(rows) for rows in answers.files.values()) == sum(bool(line.strip()) for line in kept)
    for protocol in ("strict", "paper"):
        content = score(tmp_path, protocol=protocol, intervals=False)
        assert sum(content["outcomes"].values()) == content["n"]


# Panels ----------------------------------------------------------------------------------------------------------


def test_panel_from_own_predictions(predictions, tmp_path):
    better = tmp_path / "better"
    better.mkdir()
    for path in predictions.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        fixed = [line | {"prediction": line["reference"], "error": None} for line in lines]
        (better / path.name).write_text("".join(json.dumps(line) + "\n" for line in fixed))
    content = build_panel([predictions, better], protocol="strict", name="two", version=3)
    (tmp_path / "panel.json").write_text(json.dumps(content))
    scores = score(better, panel=tmp_path / "panel.json", intervals=False)
    assert scores["normalized"]["panel"]["value"] == 1 and scores["normalized"]["panel"]["version"] == 3
    assert score(predictions, panel=tmp_path / "panel.json", intervals=False)["normalized"]["panel"]["value"] == 0
    with pytest.raises(ValueError, match="panel of the protocol strict"):
        load_panel("paper", tmp_path / "panel.json")
    with pytest.raises(ValueError, match="at least two"):
        build_panel([better], protocol="strict", name="one", version=1)


@pytest.mark.parametrize("content", [[], {}, {"name": "x"}])
def test_files_that_are_no_panel(content):
    with pytest.raises(ValueError, match="panel"):
        parse_panel(content, "here")


# The bootstrap ---------------------------------------------------------------------------------------------------


def test_interval_of_a_share_is_the_binomials():
    hits = np.zeros((400, 1))
    hits[:100] = 1
    shares = Resampler({"f": [str(row) for row in range(400)]}, 4_000, 0).sums({"f": hits})["f"][:, 0] / 400
    assert np.std(shares) == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.05)
    assert np.mean(shares) == pytest.approx(0.25, abs=2e-3)


def test_clusters_are_drawn_whole():
    """Ten copies of every row carry no more information than one."""
    values = np.arange(40.0)[:, None]
    single = Resampler({"f": [str(row) for row in range(40)]}, 3_000, 0).sums({"f": values})["f"] / 40
    copies = [str(row) for row in range(40) for _ in range(10)]
    tenfold = Resampler({"f": copies}, 3_000, 0).sums({"f": np.repeat(values, 10, axis=0)})["f"] / 400
    alone = Resampler({"f": [str(row) for row in range(400)]}, 3_000, 0).sums({"f": np.repeat(values, 10, axis=0)})
    assert np.std(tenfold) == pytest.approx(np.std(single), rel=0.05)
    assert np.std(alone["f"] / 400) < 0.4 * np.std(tenfold)


def test_a_recording_in_two_files_is_drawn_once():
    values = np.random.default_rng(0).normal(size=(50, 1))
    names = [str(row) for row in range(50)]
    shared = Resampler({"a": names, "b": names[::-1]}, 100, 0).sums({"a": values, "b": values[::-1]})
    assert np.allclose(shared["a"], shared["b"])
    apart = Resampler({"a": names, "b": [f"other {name}" for name in names]}, 100, 0).sums({"a": values, "b": values})
    assert not np.allclose(apart["a"], apart["b"])


def test_draws_do_not_depend_on_other_files():
    values = np.arange(20.0)[:, None]
    names = [str(row) for row in range(20)]
    alone = Resampler({"a": names}, 50, 0).sums({"a": values})["a"]
    beside = Resampler({"a": names, "b": ["x", "y"]}, 50, 0).sums({"a": values, "b": values[:2]})["a"]
    assert np.array_equal(alone, beside)


def test_negative_resamples():
    with pytest.raises(ValueError, match="negative"):
        Resampler({"f": ["a"]}, -1, 0)


@pytest.mark.slow
def test_all_44_released_files_are_each_measured_once(monkeypatch):
    """Intervals are drawn from what was measured once; benchmarks/scoring.py takes the time."""
    measured, original = [], strict.read_rows
    monkeypatch.setattr(strict, "read_rows", lambda rows, *more: measured.append(len(rows)) or original(rows, *more))
    forget()
    content = score(shared_fixture("official_outputs") / "Kimi-Audio", intervals=True)
    assert len(measured) == 44 and sum(measured) == content["n"]
    assert len(content["files"]) == 44 and content["n"] == 10_605
    sources = content["files"]["ASR_test"]["sources"]
    assert sum(one["n"] for one in sources.values()) == 4_566 and len(sources) == 6
