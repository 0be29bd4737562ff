"""The quickstart at minimum size: killed on the way, finished by the same command, then used as a stranger would.

The model it leaves has learned nothing: what is tested is that every door opens on what the room before it wrote.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from support.paths import ROOT

from dataset_scripts import sources_file
from dataset_scripts.build import build
from llaso import progress
from llaso.quickstart import pipeline
from llaso.quickstart.options import Options

LLASO = [sys.executable, "-m", "llaso.cli"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LLASO, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, **options)


def write_digits(folder: Path) -> Path:
    """Recordings laid out like the Free Spoken Digit Dataset: three speakers, six takes of each digit, of hum."""
    (folder / "recordings").mkdir(parents=True)
    chance = np.random.default_rng(0)
    for pitch, speaker in ((110, "ada"), (150, "ben"), (190, "cleo")):
        for digit in range(10):
            for take in range(6):
                time_axis = np.arange(int(8000 * (0.2 + 0.02 * take))) / 8000
                hum = 0.3 * np.sin(2 * np.pi * (pitch + 30 * digit) * time_axis) + 0.01 * chance.standard_normal(
                    len(time_axis)
                )
                soundfile.write(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", hum, 8000)
    people = {
        name: {"gender": "female", "accent": "USA/neutral", "language": "english"} for name in ("ada", "ben", "cleo")
    }
    (folder / "speakers.json").write_text(json.dumps(people))
    return folder


@pytest.fixture(scope="module")
def journey(tmp_path_factory) -> Path:
    """A finished quickstart that was killed in Stage 1 without warning and started again."""
    folder = tmp_path_factory.mktemp("quickstart")
    speech, out = write_digits(folder / "digits"), folder / "run"
    command = [*LLASO, "quickstart", "--out", str(out), "--speech", str(speech), "--size", "minimum", "--ignore-gate"]
    with (folder / "first.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 400
        while "[3/6]" not in (said := (folder / "first.log").read_text()):
            assert first.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert not (out / "report").exists()
    second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "[1/6] corpora: done before" in second.stdout
    (out / "second.log").write_text(second.stdout)
    return out


def test_the_journey_prints_where_things_lie_and_what_was_heard(journey):
    said = (journey / "second.log").read_text()
    for expected in ("report/index.html", "llaso-tiny", "said", "heard", "AutoModelForMultimodalLM"):
        assert expected in said
    assert "did not pass its gate" in said  # nothing is learned in six steps, and it says so


def test_a_finished_quickstart_does_nothing_again(journey):
    speech = journey.parent / "digits"
    before = {path: path.stat().st_mtime_ns for path in journey.rglob("*") if path.is_file()}
    again = run("quickstart", "--out", journey, "--speech", speech, "--size", "minimum", "--ignore-gate")
    assert again.returncode == 0 and again.stdout.count("done before") == 6
    assert {path: path.stat().st_mtime_ns for path in journey.rglob("*") if path.is_file()} == before


def test_a_gate_not_passed_stops_the_journey_unless_it_only_shows_that_all_runs(journey, tmp_path, capsys):
    gone_on = run("quickstart", "--out", journey, "--speech", journey.parent / "digits", "--size", "minimum")
    assert gone_on.returncode == 0 and "did not pass its gate" in gone_on.stdout and "Going on." in gone_on.stdout
    failed = {"wer": 1.0, "wer_words": 20, "gate_wer": 0.1}
    done = {"corpora": {}, "backbones": {}, "stage 1": failed}
    (tmp_path / "quickstart.json").write_text(json.dumps({"options": asdict(Options()), "done": done}))
    assert pipeline.quickstart(tmp_path, Options()) == 1
    assert "go on all the same with --ignore-gate" in capsys.readouterr().out


def test_resuming_with_other_options_is_refused(journey):
    other = run("quickstart", "--out", journey, "--size", "minimum", "--seed", "1")
    assert other.returncode == 2 and "other options" in other.stderr


def test_training_and_evaluation_share_no_clip(journey, tmp_path):
    leakage = json.loads((journey / "llaso-eval" / "leakage.json").read_text())
    rows = {corpus: [] for corpus in ("align", "instruct", "eval")}
    from datasets import Audio, load_dataset

    for corpus in rows:
        for split, table in load_dataset(str(journey / f"llaso-{corpus}"), cache_dir=str(tmp_path)).items():
            assert isinstance(table.features["audio"].feature, Audio)
            rows[corpus] += [{**row, "split": split} for row in table.remove_columns("audio").to_list()]
    held = rows["eval"]
    trained = [row for corpus in ("align", "instruct") for row in rows[corpus] if row["split"] == "train"]
    assert held and trained
    for column in ("voice", "speaker", "sha256"):
        assert not ({row[column] for row in held} & {row[column] for row in trained} - {""}), column
    said = [{row["target"] for row in part if row["task"] == "ASR"} for part in (held, trained)]
    assert said[0] and not said[0] & said[1]
    assert leakage["clean"] is True
    assert {row["modality"] for row in held} == {"text_audio", "audio_text", "audio"}
    assert len({row["task"] for row in held}) >= 8


def test_the_sources_file_that_it_leaves_builds_the_same_corpora(tmp_path):
    out = tmp_path / "run"
    pipeline._Pipeline(out, Options(size="minimum")).build_corpora()
    file = sources_file.read(out / "sources.yaml")
    built = build("instruct", file.sources, tmp_path / "again", clips=out / "clips", **file.settings)
    shards = {str(path.relative_to(built)): path.read_bytes() for path in built.glob("data/**/*.parquet")}
    there = out / "llaso-instruct"
    assert shards == {str(path.relative_to(there)): path.read_bytes() for path in there.glob("data/**/*.parquet")}


def test_corpora_stream_without_torchcodec(journey):
    from datasets import load_dataset

    stream = load_dataset(str(journey / "llaso-instruct"), "audio", split="train", streaming=True)
    row = next(iter(stream))
    samples, rate = soundfile.read(io.BytesIO(row["audio"][0]["bytes"]))
    assert rate == 16000 and samples.ndim == 1 and row["modality"] == "audio"


def test_report_has_every_task_with_interval_baseline_and_coverage(journey):
    report = json.loads((journey / "report" / "report.json").read_text())
    page = (journey / "report" / "index.html").read_text()
    assert (journey / "report" / "radar.png").stat().st_size > 1000
    assert "<audio" in page and 'src="http' not in page and 'href="http' not in page
    assert report["systems"][0]["name"] == "llaso-tiny"


def in_a_fresh_process(code: str, *, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_auto_classes_open_the_model(journey):
    said = in_a_fresh_process(
        "import modeling_llaso\n"
        "from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor\n"
        f"p = {str(journey / 'llaso-tiny')!r}\n"
        "for auto in (AutoProcessor, AutoModelForMultimodalLM, AutoModel):\n"
        "    print(type(auto.from_pretrained(p)).__name__)",
        cwd=ROOT,
    )
    assert said.split() == ["LlasoProcessor", "LlasoForConditionalGeneration", "LlasoModel"]


def test_remote_code_opens_the_model_where_the_package_is_absent(journey, tmp_path):
    said = in_a_fresh_process(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('modeling_llaso', 'dataset_scripts', 'eval_suite'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"import os; os.environ['HF_MODULES_CACHE'] = {str(tmp_path)!r}\n"
        "from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor\n"
        f"p = {str(journey / 'llaso-tiny')!r}\n"
        "for auto in (AutoProcessor, AutoModelForMultimodalLM, AutoModel):\n"
        "    print(type(auto.from_pretrained(p, trust_remote_code=True)).__name__)",
        cwd=tmp_path,
    )
    assert said.split() == ["LlasoProcessor", "LlasoForConditionalGeneration", "LlasoModel"]


def test_transcribe_and_ask_print_an_answer(journey):
    model, sound = journey / "llaso-tiny", journey / "held-out.flac"
    for command in (("transcribe", sound), ("ask", sound, "what is said")):
        done = run(*command, "--model", model)
        assert done.returncode == 0, done.stderr


def test_speech_is_spoken_digits_a_sources_file_or_anything_that_can_be_inspected(tmp_path):
    def named(speech: Path) -> list[tuple[str, int]]:
        run = pipeline._Pipeline(tmp_path / f"run-{speech.name}", pipeline.Options(speech=str(speech)))
        return [(source.name, len(list(source.items()))) for source in run.recordings()[0]]

    digits = write_digits(tmp_path / "digits")
    assert [name for name, _ in named(digits)] == ["fsdd"]
    recording = next((digits / "recordings").iterdir())
    beside = tmp_path / "beside" / "recordings"  # whose names are not those of spoken digits
    beside.mkdir(parents=True)
    for name in ("a", "b"):
        (beside / f"{name}.wav").write_bytes(recording.read_bytes())
        (beside / f"{name}.txt").write_text(f"take {name}")
    assert named(beside.parent) == [("beside", 2)]
    assert "folder:" in (tmp_path / "run-beside" / "speech-sources.yaml").read_text()
    (tmp_path / "mine.yaml").write_text("sources: {mine: {folder: beside}}")
    assert named(tmp_path / "mine.yaml") == [("mine", 2)]


def test_the_time_of_a_stage_counts_what_was_interrupted(tmp_path, monkeypatch):
    clock = iter([0.0, 50.0, 100.0, 107.0])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline._Pipeline(tmp_path / "run", Options()).stage("corpora", interrupted)
    again = pipeline._Pipeline(tmp_path / "run", Options())
    again.stage("corpora", dict)
    assert again.record["done"]["corpora"]["seconds"] == 57.0


def test_the_time_left_follows_from_what_was_done_since_the_start(monkeypatch):
    clock, lines = iter([0.0, 0.5, 3.0, 5.0, 9.0]), []
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    show = progress.progress_report("rows", lines.append, every=2.0)
    for done in (900, 910, 920, 1000):  # a resumed job
        show(done, 1000)
    assert lines == ["rows 910/1,000  22 s left", "rows 920/1,000  18 s left", "rows 1,000/1,000"]
