"""The doors to other evaluation tools: the same answers get the same strict scores there, by the real libraries."""

from __future__ import annotations

import configparser

import pytest
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from support.paths import ROOT
from support.tiny_eval import corpus_row, write_corpus

from eval_suite.answer_records import Reply, write_predictions
from eval_suite.corpus import EvalCorpus
from eval_suite.score import score
from llaso.cli import main

EXACT = 1e-9
GIVEN = {
    "ASR": ("hello word", "Good morning!", ""),
    "SGC": ("这是Male的声音", "female", "male or female"),
    "AR_years": ("大概30岁", "I cannot say", "40 to 50"),
    "PP": ("C4", "60", "61 or 62"),
    "EE": ("[time : five]", "none", "[time : six] [day : monday]"),
}
"""Answers by task: right, wrong, unreadable and in another script."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    kinds = [
        ("ASR", "text_audio", "hello world", ()),
        ("ASR", "audio_text", "good morning", ()),
        ("SGC", "text_audio", "male", ("male", "female")),
        ("AR", "text_audio", "33", ()),
        ("PP", "text_audio", "60", ()),
        ("EE", "text_audio", "[time : five] [day : monday]", ()),
    ]
    rows = [corpus_row(number, *kinds[number % len(kinds)]) for number in range(18)]
    return write_corpus(tmp_path_factory.mktemp("doors") / "corpus", rows)


@pytest.fixture(scope="module")
def answered(corpus):
    """Row id -> answer."""
    given = {}
    for row in EvalCorpus(corpus).rows:
        task = "AR_years" if row.task == "AR" else row.task
        given[row.id] = GIVEN[task][row.index % 3]
    return given


@pytest.fixture(scope="module")
def ours(corpus, answered, tmp_path_factory):
    """Task -> metric -> value, from `llaso eval score` on a predictions folder."""
    out = tmp_path_factory.mktemp("ours")
    rows = EvalCorpus(corpus).rows
    write_predictions(out, rows, [Reply(answered[row.id]) for row in rows], {})
    tasks = score(out, intervals=False)["tasks"]
    return {
        task: {name: one["value"] for name, one in facts["metrics"].items() if one["value"] is not None}
        for task, facts in tasks.items()
    }


def test_inspect_gives_the_same_scores(corpus, answered, ours, tmp_path):
    inspect_ai = pytest.importorskip("inspect_ai", reason="the extra `inspect` is not installed")
    from inspect_ai.model import ModelAPI, ModelOutput, get_model, modelapi

    import llaso.doors.inspect_tasks  # noqa: F401  (registers the tasks)

    by_instruction = {row.instruction: answered[row.id] for row in EvalCorpus(corpus).rows}

    @modelapi("given")
    class Given(ModelAPI):
        """Answers by the instruction; every question comes with its clip."""

        async def generate(self, input, tools, tool_choice, config):
            clips = [part for part in input[-1].content if part.type == "audio"]
            assert len(clips) == 1 and clips[0].format == "wav"
            (text,) = (part.text for part in input[-1].content if part.type == "text")
            return ModelOutput.from_content("given", by_instruction[text])

        async def count_text_tokens(self, text):
            return len(text)  # inspect's own way downloads a tokenizer

    for task, expected in ours.items():
        (log,) = inspect_ai.eval(
            f"llaso/{task.lower()}",
            model=get_model("given/answers", memoize=False),
            task_args={"data": str(corpus)},
            log_dir=str(tmp_path),
            display="none",
        )
        assert log.status == "success", log.error
        found = {name: one.value for name, one in log.results.scores[0].metrics.items()}
        assert found.pop("rows") == len(log.samples) == (6 if task == "ASR" else 3)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert value == pytest.approx(expected[name], abs=EXACT), (task, name)


def test_lmms_eval_gives_the_same_scores(corpus, answered, ours, tmp_path, monkeypatch):
    pytest.importorskip("lmms_eval.evaluator", reason="the extra `lmms` is not installed")
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    assert main(["eval", "lmms-tasks", str(corpus), "--out", str(tmp_path / "tasks")]) == 0

    class Given(lmms):
        """Answers by the row's id; every question comes with its clip and its instruction."""

        is_simple = True

        def generate_until(self, requests):
            texts = []
            for request in requests:
                text, _, clips, number, name, split = request.args
                doc = self.task_dict[name][split][number]
                (clip,) = clips(doc)
                assert clip["sampling_rate"] == 16_000 and clip["array"].ndim == 1 and text.startswith("Question")
                texts.append(answered[doc["id"]])
            return texts

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    tasks = {f"llaso_{task.lower()}": task for task in ours}
    found = simple_evaluate(
        model=Given(),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
        bootstrap_iters=0,
        batch_size=1,
    )["results"]
    for name, task in tasks.items():
        for metric, value in ours[task].items():
            assert found[name][f"{metric},none"] == pytest.approx(value, abs=EXACT), (task, metric)


def test_lmms_tasks_are_written_once(corpus, tmp_path, capsys):
    out = tmp_path / "tasks"
    assert main(["eval", "lmms-tasks", str(corpus), "--out", str(out)]) == 0
    written = (out / "llaso_pp.yaml").read_text()
    assert "- metric: mae\n" in written and "higher_is_better: false" in written
    assert main(["eval", "lmms-tasks", str(corpus), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_inspect_finds_the_tasks_through_the_entry_point():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    (line,) = settings["options.entry_points"]["inspect_ai"].strip().splitlines()
    assert line == "llaso = llaso.doors.inspect_tasks"


def test_the_hubs_benchmark_file_names_the_tasks_of_models_results(corpus, ours, tmp_path):
    out = tmp_path / "eval.yaml"
    assert main(["eval", "hub-yaml", str(corpus), "--name", "Tones", "--out", str(out)]) == 0
    content = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert list(content) == ["name", "description", "evaluation_framework", "tasks"]  # as the Hub documents them
    assert content["name"] == "Tones" and content["evaluation_framework"] == "inspect-ai"
    assert all(one.keys() == {"id", "config", "split"} for one in content["tasks"])
    assert {one["id"] for one in content["tasks"]} == ours.keys()
    entries = [EvalResultEntry("me/tones", one["id"], value=0.5) for one in content["tasks"]]
    assert [one["dataset"]["task_id"] for one in eval_result_entries_to_yaml(entries)] == list(ours)
