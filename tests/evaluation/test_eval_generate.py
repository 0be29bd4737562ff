"""Generation: whichever model or process answers, and however often it is killed, the predictions are the same."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.tiny_eval import FAMILIES, chat_server, corpus_row, default_rows, write_corpus

from eval_suite.answer_records import Records
from eval_suite.backends import CallableBackend, GenerationSettings, Request
from eval_suite.corpus import EvalCorpus
from eval_suite.generate import GenerationRun, generate
from eval_suite.speed import SPEED
from llaso_common.audio import read_audio

RECORD = [
    *"id file task category modality source instruction prediction reference choices error".split(),
    *"cluster duration attributes".split(),
]


def echo(requests: Sequence[Request]) -> list[str]:
    """Says which row it heard and for how long."""
    return [f"{request.row.id} {sum(len(clip) for clip in request.audio)}" for request in requests]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), default_rows())


def finals(out: Path) -> dict[str, bytes]:
    """The files that scoring reads, with their bytes; how long it took differs from run to run."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != SPEED}


def predictions(out: Path) -> dict[str, dict]:
    lines = [line for path in sorted(out.glob("*.jsonl")) for line in path.read_text("utf-8").split("\n") if line]
    return {record["id"]: record for record in map(json.loads, lines)}


def test_folder_has_one_file_a_group_in_data_order(corpus, tmp_path):
    out = generate(echo, corpus, tmp_path / "out", progress=False)
    assert set(finals(out)) == {
        "generation.json",
        "tones_ASR_text_audio.jsonl",
        "tones_ASR_audio_text.jsonl",
        "tones_SGC_text_audio.jsonl",
        "tones_SGC_audio.jsonl",
    }
    records = predictions(out)
    assert list(records["row-001"]) == RECORD
    row = records["row-001"]
    assert (row["task"], row["choices"], row["reference"]) == ("SGC", ["male", "female"], "male")
    assert row["instruction"] == "Question 1 about this clip:"
    assert row["prediction"] == f"row-001 {round(0.27 * 16000)}"
    lines = (out / "tones_ASR_text_audio.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(line)["id"] for line in lines] == ["row-000", "row-004", "row-008"]
    made = json.loads((out / "generation.json").read_text())
    assert (made["rows"], made["errors"], made["data"]["split"]) == (12, 0, "test")
    assert made["model"] == "test_eval_generate.echo"


def test_batch_size_and_repetition_change_nothing(corpus, tmp_path):
    whole = generate(echo, corpus, tmp_path / "whole", batch_size=64, progress=False)
    single = generate(echo, corpus, tmp_path / "single", batch_size=1, progress=False)
    assert finals(whole) == finals(single)

    def never(requests):
        raise AssertionError("everything has been answered")

    backend = CallableBackend(echo)
    backend.answer = never  # type: ignore[method-assign]
    GenerationRun(backend, EvalCorpus(corpus), whole, progress=False).complete()
    assert finals(whole) == finals(single)


def test_limit_is_a_stable_sample_and_leaves_no_stale_file(corpus, tmp_path):
    out = generate(echo, corpus, tmp_path / "out", progress=False)
    generate(echo, corpus, out, limit=3, progress=False)
    few = predictions(out)
    assert len(few) == 3
    assert set(few) == set(predictions(generate(echo, corpus, tmp_path / "new", limit=3, progress=False)))
    assert {record["file"] + ".jsonl" for record in few.values()} == set(finals(out)) - {"generation.json"}


def test_settings_make_new_answers(corpus, tmp_path):
    def first(requests):
        return ["one"] * len(requests)

    out = generate(first, corpus, tmp_path / "out", progress=False)
    backend = CallableBackend(first, GenerationSettings(system="Be brief."))
    seen: list[str] = []
    backend.function = lambda requests: [seen.append(r.messages[0]["content"][0]["text"]) or "two" for r in requests]
    GenerationRun(backend, EvalCorpus(corpus), out, progress=False, overwrite=True).complete()
    assert {record["prediction"] for record in predictions(out).values()} == {"two"}
    assert set(seen) == {"Be brief."}


def test_a_rebuilt_corpus_is_read_anew(tmp_path):
    """datasets 5.2 alone would serve the rows of the first folder of this name."""
    for place, count in (("a", 3), ("b", 5), ("a", 7)):
        assert len(EvalCorpus(write_corpus(tmp_path / place / "same", default_rows(count))).rows) == count


# Bad rows and bad batches --------------------------------------------------------------------------------------


def test_one_bad_row_is_an_error_with_its_reason(tmp_path):
    rows = default_rows(6)
    rows[2]["audio"][0]["bytes"] = b"not a sound"
    rows[4]["audio"] = []
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(16_000), 16_000, format="FLAC")
    rows[5]["audio"][0]["bytes"] = silence.getvalue()
    data = write_corpus(tmp_path / "data", rows)

    def touchy(requests):
        if any(request.row.id == "row-001" for request in requests):
            raise RuntimeError("cannot hear\nthis one")
        return echo(requests)

    records = predictions(generate(touchy, data, tmp_path / "out", batch_size=4, progress=False))
    assert len(records) == 6
    assert records["row-001"]["error"] == "RuntimeError: cannot hear this one"
    assert records["row-002"]["error"].startswith("clip 0: not readable as audio")
    assert records["row-004"]["error"] == "the messages name 1 clip(s), the row holds 0"
    assert records["row-005"]["error"] == "clip 0: the recording is silent"
    assert [records[f"row-00{n}"]["error"] for n in (0, 3)] == [None] * 2
    assert records["row-001"]["prediction"] == ""


def test_errors_are_asked_again_only_on_demand(corpus, tmp_path):
    broken = True

    class Moody:
        def __call__(self, requests):
            if broken:
                raise RuntimeError("not now")
            return echo(requests)

    mood, out = Moody(), tmp_path / "out"
    assert {record["error"] for record in predictions(generate(mood, corpus, out, progress=False)).values()} == {
        "RuntimeError: not now"
    }
    broken = False
    generate(mood, corpus, out, progress=False)
    assert all(record["error"] for record in predictions(out).values())
    generate(mood, corpus, out, retry_errors=True, progress=False)
    assert not any(record["error"] for record in predictions(out).values())


def test_a_hopeless_run_stops_early(tmp_path):
    data = write_corpus(
        tmp_path / "data", [corpus_row(n % 5, "ASR", "audio", "x") | {"id": str(n)} for n in range(80)]
    )
    asked = []

    def broken(requests):
        asked.extend(requests)
        raise ImportWarning("no such thing")

    with pytest.raises(ValueError, match="first 64 rows all failed: ImportWarning: no such thing"):
        generate(broken, data, tmp_path / "out", batch_size=16, progress=False)
    assert len({request.row.id for request in asked}) == 64


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
def test_out_of_memory_halves_the_batch(corpus, tmp_path, error):
    sizes = []

    def hungry(requests):
        sizes.append(len(requests))
        if len(requests) > 3:
            raise error
        return echo(requests)

    out = generate(hungry, corpus, tmp_path / "out", batch_size=12, progress=False)
    assert sizes == [12, 6, 3, 3, 6, 3, 3]
    assert {record["prediction"] for record in predictions(out).values()} == {
        record["prediction"] for record in predictions(generate(echo, corpus, tmp_path / "x", progress=False)).values()
    }


def test_what_the_user_gets_wrong_is_said_plainly(corpus, tmp_path):
    with pytest.raises(ValueError, match="split nowhere"):
        generate(echo, corpus, tmp_path / "out", split="nowhere", progress=False)
    with pytest.raises(ValueError, match="batch_size is 0"):
        generate(echo, corpus, tmp_path / "out", batch_size=0, progress=False)
    twice = write_corpus(tmp_path / "twice", [*default_rows(3), default_rows(1)[0]])
    with pytest.raises(ValueError, match="share the id 'row-000'"):
        generate(echo, twice, tmp_path / "out", progress=False)


def test_decoding_mixes_down_and_resamples():
    stereo = np.stack([np.sin(np.arange(44100) / 30), np.zeros(44100)], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, 44100, format="WAV", subtype="FLOAT")
    mono = read_audio(buffer.getvalue(), 16000)
    assert mono.shape == (16000,) and mono.dtype == np.float32
    assert np.abs(mono).max() == pytest.approx(0.5, abs=0.02)


# Killed and started again --------------------------------------------------------------------------------------


def test_records_survive_a_kill_at_any_byte(corpus, tmp_path):
    """Cut the append-only file anywhere: the finished folder is the same as without the cut."""
    out = generate(echo, corpus, tmp_path / "out", batch_size=4, progress=False)
    expected = finals(out)
    (part,) = (out / "records").glob("part-*.jsonl")
    whole = part.read_bytes()
    for cut in [0, 1, 57, *range(len(whole) // 3, len(whole), 211), len(whole) - 1]:
        for path in [*out.glob("*.json*"), *(out / "records").glob("part-*")]:
            path.unlink()
        part.write_bytes(whole[:cut])
        generate(echo, corpus, out, batch_size=4, progress=False)
        assert finals(out) == expected, f"cut at byte {cut}"


def test_processes_share_the_batches(corpus, tmp_path, monkeypatch):
    """Two of three processes answer their share; one is killed; a lone process finishes."""
    expected = finals(generate(echo, corpus, tmp_path / "alone", batch_size=2, progress=False))
    monkeypatch.setattr(GenerationRun, "_wait_until_all_have_read", lambda self: None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    answered: dict[str, list[str]] = {}
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)

        def mine(requests, rank=rank):
            answered.setdefault(rank, []).extend(request.row.id for request in requests)
            return echo(requests)

        backend = CallableBackend(echo)
        backend.function = mine
        monkeypatch.setattr(CallableBackend, "name", "test_eval_generate.echo")
        monkeypatch.setattr(CallableBackend, "revision", lambda self: "same")
        GenerationRun(backend, EvalCorpus(corpus), tmp_path / "out", 2, progress=False).complete()
    assert not set(answered["1"]) & set(answered["2"])
    assert len(answered["1"]) + len(answered["2"]) == 8
    assert not (tmp_path / "out" / "generation.json").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    GenerationRun(CallableBackend(echo), EvalCorpus(corpus), tmp_path / "out", 2, progress=False).complete()
    got = finals(tmp_path / "out")
    assert {name: got[name] for name in got if name != "generation.json"} == {
        name: expected[name] for name in expected if name != "generation.json"
    }


SUICIDAL = """
import os, signal
from pathlib import Path
def answer(requests):
    if "LIVES" in os.environ and os.environ.get("RANK", "0") == "0":  # one process counts: the file has no lock
        left = Path(os.environ["LIVES"])
        lives = int(left.read_text()) - 1
        left.write_text(str(lives))
        if lives == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return [f"{r.row.id} heard {len(r.audio[0])}" for r in requests]
"""


def test_killed_process_goes_on_where_it_was(corpus, tmp_path):
    (tmp_path / "suicidal.py").write_text(SUICIDAL)
    (tmp_path / "lives").write_text("3")
    command = [sys.executable, "-m", "llaso.cli", "eval", "generate", "--callable", "suicidal:answer"]
    command += ["--data", str(corpus), "--batch-size", "2"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "LIVES": str(tmp_path / "lives")}

    def run(out: str) -> int:
        return subprocess.run([*command, "--out", str(tmp_path / out)], env=environment, timeout=120).returncode

    assert run("killed") == -signal.SIGKILL
    part = tmp_path / "killed" / "records" / "part-00000.jsonl"
    assert len(part.read_text().splitlines()) == 4  # two batches of two had been recorded
    assert not (tmp_path / "killed" / "generation.json").exists()
    (tmp_path / "lives").write_text("1000")
    assert run("killed") == 0
    assert int((tmp_path / "lives").read_text()) == 1000 - 4  # only what was missing
    assert run("undisturbed") == 0
    assert finals(tmp_path / "killed") == finals(tmp_path / "undisturbed")


@pytest.mark.slow
def test_accelerate_launch_with_two_processes(corpus, tmp_path):
    """Of two processes one is killed; one process, or again two after a torn line, end where a calm run does."""
    (tmp_path / "suicidal.py").write_text(SUICIDAL)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    # --multi_gpu is what makes this launcher start several processes, also without a GPU.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]

    def run(out: Path, *launch: str, lives: int | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, *launch, "-m", "llaso.cli", "eval", "generate", "--data", str(corpus)]
        command += ["--callable", "suicidal:answer", "--batch-size", "2", "--out", str(out)]
        if lives is not None:
            (tmp_path / "lives").write_text(str(lives))
        more = {} if lives is None else {"LIVES": str(tmp_path / "lives")}
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=300)

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert run(calm).returncode == 0
    assert run(killed, *launcher, lives=2).returncode != 0
    assert not (killed / "generation.json").exists()
    parts = sorted((killed / "records").glob("part-*.jsonl"))
    assert 0 < sum(part.read_text().count("\n") for part in parts) < 12
    alone = shutil.copytree(killed, tmp_path / "alone")
    assert run(alone).returncode == 0
    assert finals(alone) == finals(calm)
    written = max(parts, key=lambda part: part.stat().st_size)
    written.write_bytes(written.read_bytes()[:-20])
    done = run(killed, *launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "12 rows answered, 0 of them with an error" in done.stdout
    assert finals(killed) == finals(calm)


def test_records_prefer_success_and_ignore_torn_lines(tmp_path):
    records = Records(tmp_path)
    lines = [
        {"key": "a", "id": "1", "prediction": "", "error": "bad"},
        {"key": "a", "id": "1", "prediction": "good", "error": None},
        {"key": "a", "id": "1", "prediction": "later", "error": None},
        {"key": "b", "id": "2", "prediction": "", "error": "bad"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "records" / "part-00000.jsonl").write_text(text + '{"key": "c", "predic')
    assert {key: answer.prediction for key, answer in records.read().items()} == {"a": "good", "b": ""}
    assert set(records.read(keep_errors=False)) == {"a"}


# Models --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random models by family, made once."""
    import torch

    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family == "voxtral":
            pytest.importorskip("mistral_common", reason="Voxtral's tokenizer: pip install --no-deps mistral-common")
        if family not in made:
            torch.manual_seed(0)
            made[family] = tmp_path_factory.mktemp(family)
            FAMILIES[family](made[family])
        return made[family]

    return checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_alike_in_any_batch(family, checkpoints, corpus, tmp_path):
    model = checkpoints(family)
    batched = generate(model, corpus, tmp_path / "batched", batch_size=5, max_new_tokens=8, progress=False)
    single = generate(model, corpus, tmp_path / "single", batch_size=1, max_new_tokens=8, progress=False)
    assert finals(batched) == finals(single)
    records = predictions(batched)
    assert len(records) == 12 and not any(record["error"] for record in records.values())
    assert len({record["prediction"] for record in records.values()}) > 1  # the audio is heard
    assert not any("Question" in record["prediction"] for record in records.values())  # the prompt is not repeated


def test_another_checkpoint_in_the_same_folder_is_asked_anew(checkpoints, corpus, tmp_path):
    import shutil

    import torch
    from transformers import AutoModelForMultimodalLM

    model = Path(shutil.copytree(checkpoints("qwen2_audio"), tmp_path / "model"))
    out = generate(model, corpus, tmp_path / "out", max_new_tokens=4, progress=False)
    before = predictions(out)
    network = AutoModelForMultimodalLM.from_pretrained(model)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(-1)
    network.save_pretrained(model)
    with pytest.raises(ValueError, match="with another revision"):
        generate(model, corpus, out, max_new_tokens=4, progress=False)
    assert before == predictions(out)
    generate(model, corpus, out, max_new_tokens=4, overwrite=True, progress=False)
    assert before != predictions(out)


def test_sampling_repeats_itself(checkpoints, corpus, tmp_path):
    model, options = checkpoints("qwen2_audio"), {"max_new_tokens": 6, "temperature": 1.0, "progress": False}
    one = generate(model, corpus, tmp_path / "one", seed=1, **options)
    again = generate(model, corpus, tmp_path / "again", seed=1, **options)
    other = generate(model, corpus, tmp_path / "other", seed=2, **options)
    assert finals(one) == finals(again)
    assert predictions(one) != predictions(other)


def test_a_model_that_takes_no_audio_is_refused(corpus, tmp_path):
    from support.tiny_eval import _byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    text_only = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    LlamaForCausalLM(text_only).save_pretrained(tmp_path / "text")
    _byte_tokenizer([]).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="takes audio and writes prompts"):
        generate(tmp_path / "text", corpus, tmp_path / "out", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        generate(tmp_path / "empty", corpus, tmp_path / "out", progress=False)


# Servers -------------------------------------------------------------------------------------------------------


def test_endpoint_gets_prompt_and_wav_and_its_answers_are_kept(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def answer(body: dict) -> tuple[int, object]:
        parts = body["messages"][-1]["content"]
        (sound,) = [part["input_audio"] for part in parts if part["type"] == "input_audio"]
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["data"])))
        words = [part["text"] for part in parts if part["type"] == "text"]
        return 200, f"{sound['format']} {rate} {len(samples)} {' '.join(words)} \ud83d"

    with chat_server(answer) as (url, received):
        out = generate("gpt-audio", corpus, tmp_path / "out", endpoint=url, max_new_tokens=7, progress=False)
        records = predictions(out)
        assert records["row-001"]["prediction"] == "wav 16000 4320 Question 1 about this clip: ?"
        assert received[0]["path"] == "/v1/chat/completions"
        assert received[0]["headers"]["Authorization"] == "Bearer secret"
        assert received[0]["body"]["model"] == "gpt-audio"
        assert received[0]["body"]["max_tokens"] == 7 and received[0]["body"]["temperature"] == 0
        assert len(received) == 12
        generate("gpt-audio", corpus, out, endpoint=url, max_new_tokens=7, progress=False)
        assert len(received) == 12
    assert "secret" not in "".join(path.read_text() for path in out.rglob("*") if path.is_file())


def test_endpoint_failures_pass_belong_to_a_row_or_stop_the_run(corpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("eval_suite.endpoint.time.sleep", lambda seconds: None)
    busy = iter(range(10))

    def answer(body: dict) -> tuple[int, object]:
        text = json.dumps(body["messages"])
        if next(busy, 99) < 5:
            return 503, {"error": "warming up"}
        if "Question 4 " in text:
            return 400, {"error": {"message": "too long"}}
        if "Question 5 " in text:
            return 200, {"choices": []}
        return 200, "fine"

    with chat_server(answer) as (url, _):
        records = predictions(generate("m", corpus, tmp_path / "out", endpoint=url, batch_size=3, progress=False))
    assert "too long" in records["row-004"]["error"] and records["row-004"]["error"].startswith("HTTP 400")
    assert records["row-005"]["error"].startswith("not a chat completion")
    assert sum(record["error"] is None for record in records.values()) == 10

    with chat_server(lambda body: (401, {"error": "no key"})) as (url, _):
        with pytest.raises(ConnectionError, match="HTTP 401.*check the address, the model and the key"):
            generate("m", corpus, tmp_path / "refused", endpoint=url, progress=False)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        generate("m", corpus, tmp_path / "gone", endpoint=url, progress=False)
    waits = [
        record for record in caplog.records if record.levelname == "WARNING" and "trying again in" in record.message
    ]
    assert waits  # a run that waits for a server says so on the screen
    assert not list((tmp_path / "gone" / "records").glob("*"))  # nothing failed, so nothing is recorded
    with pytest.raises(ValueError, match="no http"):
        generate("m", corpus, tmp_path / "gone", endpoint="localhost:1", progress=False)


def test_answers_of_another_model_are_kept_unless_asked_to_overwrite(corpus, tmp_path):
    out = tmp_path / "out"

    def other(requests):
        return ["something else"] * len(requests)

    generate(echo, corpus, out, progress=False)
    kept = finals(out)
    with pytest.raises(ValueError, match="holds the answers of .*echo with another model.* --overwrite"):
        generate(other, corpus, out, progress=False)
    with pytest.raises(ValueError, match="with another settings"):
        generate(echo, corpus, out, temperature=0.5, progress=False)
    with pytest.raises(ValueError, match="with another data"):
        generate(echo, shutil.copytree(corpus, tmp_path / "copy"), out, limit=2, progress=False)
    assert finals(out) == kept
    generate(echo, corpus, out, progress=False)  # the same again changes nothing
    assert finals(out) == kept
    generate(other, corpus, out, overwrite=True, progress=False)
    assert finals(out) != kept

    released = tmp_path / "released"
    released.mkdir()
    (released / "talk_AQA_text_audio.jsonl").write_text("their answers")
    with pytest.raises(ValueError, match="it holds talk_AQA_text_audio.jsonl"):
        generate(echo, corpus, released, progress=False)
    assert (released / "talk_AQA_text_audio.jsonl").read_text() == "their answers"
