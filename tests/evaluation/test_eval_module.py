"""The `evaluate` module: offline, in a fresh process, from a folder copied elsewhere, and equal to the library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from eval_suite.score import score_texts

MODULE = Path(str(files("eval_suite"))) / "llaso_eval"

SCRIPT = """
import json, sys
import evaluate

metric = evaluate.load(sys.argv[1])
results = {}
for name, case in json.load(open(sys.argv[2])).items():
    whole = metric.compute(**case)
    metric.add_batch(predictions=case["predictions"][:1], references=case["references"][:1])
    metric.add_batch(predictions=case["predictions"][1:], references=case["references"][1:])
    rest = {key: case[key] for key in ("tasks", "choices", "protocol", "normalization")}
    results[name] = {"whole": whole, "batched": metric.compute(**rest)}
try:
    metric.compute(predictions=["a"], references=["a"], tasks="nope")
    said = "nothing"
except ValueError as error:
    said = str(error)
json.dump({"results": results, "said": said, "about": metric.description}, open(sys.argv[3], "w"))
"""

CASES = {
    "strict": {
        "predictions": ["It is a female voice.", "Hello, world!", "C4", "[a : b]", ""],
        "references": ["Female", "hello world", "61", "[a : b]", "Male"],
        "tasks": ["SGC", "ASR", "PP", "EE", "SGC"],
        "choices": [["Male", "Female"], [], [], [], ["Male", "Female"]],
        "protocol": "strict",
        "normalization": "whisper_english",
    },
    "paper": {
        "predictions": ["A female voice.", "male"],
        "references": ["Female", "Male"],
        "tasks": "SGC",
        "choices": ["Male", "Female"],
        "protocol": "paper",
        "normalization": "none",
    },
}


@pytest.mark.slow
def test_a_copied_module_folder_scores_in_a_fresh_process(tmp_path):
    copy = shutil.copytree(MODULE, tmp_path / "elsewhere" / "llaso_eval")
    cases, out, script = tmp_path / "cases.json", tmp_path / "out.json", tmp_path / "script.py"
    cases.write_text(json.dumps(CASES))
    script.write_text(SCRIPT)
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, str(script), str(copy), str(cases), str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=500)
    found = json.loads(out.read_text())
    for name, case in CASES.items():
        expected = json.loads(json.dumps(score_texts(**case)))
        assert found["results"][name] == {"whole": expected, "batched": expected}
    assert "unknown task 'nope'" in found["said"] and "LLaSO-Eval" in found["about"]


SHARE = """
import json, sys
import evaluate

folder, out, number, cases = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
found = {}
for name, given in cases.items():
    metric = evaluate.load(folder, num_process=2, process_id=number, experiment_id=name)
    try:
        found[name] = metric.compute(**given)
    except ValueError as error:
        found[name] = str(error)
json.dump(found, open(f"{out}/{number}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_score_together(tmp_path):
    """Process 0 has the result over the answers of both; given the tasks of its own alone it says what lacks."""
    script = tmp_path / "share.py"
    script.write_text(SHARE)
    case = CASES["strict"]
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "PATH": ""}
    running = []
    for number, part in enumerate((slice(0, 2), slice(2, 5))):
        own = {key: case[key][part] for key in ("predictions", "references", "tasks", "choices")}
        cases = {"all": own | {key: case[key] for key in ("tasks", "choices")}, "own": own}
        command = [sys.executable, str(script), str(MODULE), str(tmp_path), str(number), json.dumps(cases)]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=environment))
    try:
        assert [process.wait(timeout=500) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert second == {"all": None, "own": None}
    assert first["all"] == json.loads(json.dumps(score_texts(**case)))
    assert first["own"].startswith("process 0 scores the 5 answers of all 2 processes but has 2 tasks")


def test_the_module_scores_under_both_protocols():
    result = score_texts(**CASES["strict"])
    assert result["SGC"]["accuracy"] == 0.5 and result["SGC"]["outcomes"]["abstained"] == 1
    assert result["ASR"]["wer"] == 0 and result["ASR"]["wer_raw"] == 1
    assert result["PP"]["mae"] == 1 and result["EE"]["slot_f1"] == 1
    assert score_texts(**CASES["paper"])["SGC"]["accuracy"] == 0.5
    assert score_texts(["Hi!"], ["hi"], "ASR", normalization="none")["ASR"]["wer"] == 1
    assert score_texts(["30"], ["31"], "AR")["AR_years"]["mae"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [], "ASR"), "1 predictions but 0 references"),
        ((["a"], ["a"], ["ASR", "ASR"]), "1 predictions but 2 tasks"),
        ((["a"], ["a"], "SGC", [["a"], ["b"]]), "choices must be one list"),
        ((["a"], ["a"], "SGC"), "item 0: SGC is a closed set"),
        ((["a"], ["a"], "SGC", ["b"]), "item 0: the reference 'a' names none"),
        ((["a"], ["a"], "ASR", None, "fair"), "unknown protocol"),
    ],
)
def test_the_module_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        score_texts(*arguments)


def test_card_explains_every_metric():
    """Every metric the protocols can report stands in the card."""
    card = (MODULE / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\ntitle:")
    cases = [CASES["strict"], CASES["strict"] | {"protocol": "paper"}]
    sentence = "accuracy is 9, prosodic is 8, fluency is 7 total score is 8."
    for protocol in ("strict", "paper"):
        cases.append(dict(predictions=[sentence], references=[sentence], tasks="PSSL", protocol=protocol))
        cases.append(dict(predictions=["a"], references=["a"], tasks="PR", protocol=protocol))
        cases.append(dict(predictions=["a"], references=["a"], tasks="AQA", protocol=protocol))
    for case in cases:
        for metrics in score_texts(**case).values():
            for name in metrics.keys() - {"n", "outcomes"}:
                assert f"`{name}`" in card, name
