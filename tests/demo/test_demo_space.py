"""`llaso demo --export`: a folder that runs by itself, and that the Hub takes as a Space; mistakes are told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import soundfile
import yaml
from packaging.requirements import Requirement
from support.hub_server import connected, serve
from support.tiny_demo import direct_answer, talking_llaso
from support.tiny_llaso import RATE, tone

from llaso.cli import build_parser, main

ASK = """
import json, sys
import app, modeling_llaso
from llaso.demo.question import DemoQuestion
from llaso.demo.page import launch
import gradio_client
_, url, _ = launch(app.page, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
client = gradio_client.Client(url, verbose=False)
sound = gradio_client.handle_file(sys.argv[1])
answer, status = client.predict("text_audio", "what is it", sound, None, "", api_name="/ask")
rooms = sorted(name for name in sys.modules if name.split(".")[0] in ("dataset_scripts", "eval_suite"))
print("SAID", json.dumps({"answer": answer, "code": modeling_llaso.__file__, "url": url, "rooms": rooms}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "my-model"
    for part in talking_llaso():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def space(checkpoint) -> Path:
    folder = checkpoint.parent / "space"
    assert main(["demo", str(checkpoint), "--export", str(folder)]) == 0
    return folder


def test_the_exported_app_runs_by_itself(space, tmp_path):
    sound = tmp_path / "tone.wav"
    soundfile.write(sound, tone(0.6), RATE, subtype="FLOAT")
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(sound)],
        cwd=space,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID "))[5:])
    assert Path(said["code"]).parent == space / "modeling_llaso"
    assert said["url"].startswith("http://127.0.0.1:")
    assert said["rooms"] == []
    content = [{"type": "text", "text": "what is it"}, {"type": "audio"}]
    assert said["answer"] == direct_answer(*talking_llaso(), content, tone(0.6), 256)


def test_the_hub_takes_it_as_a_space(space, tmp_path):
    from huggingface_hub import HfApi

    front = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    with serve(tmp_path / "hub") as server, connected(server, tmp_path):
        hub = HfApi()
        hub.create_repo("owner/demo", repo_type="space", space_sdk=front["sdk"])
        hub.upload_folder(repo_id="owner/demo", repo_type="space", folder_path=space)
        there = server.files("spaces/owner/demo")
        assert server.sdks["spaces/owner/demo"] == "gradio"
    assert {front["app_file"], "README.md", "requirements.txt", "examples/menu.json", "model/config.json"} <= set(
        there
    )
    assert there["model/model.safetensors"] == (space / "model" / "model.safetensors").read_bytes()


def test_a_space_names_what_it_needs(space):
    from importlib.metadata import version

    front = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    assert front["title"] == "my-model" and front["sdk_version"] == version("gradio")
    needed = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    assert all(need.specifier.contains(version(need.name).partition("+")[0]) for need in needed)
    assert str(space.parent) not in "".join(file.read_text() for file in space.rglob("*.py"))


def test_a_space_of_a_published_model_loads_it_from_the_hub(tmp_path):
    assert main(["demo", "owner/model", "--export", str(tmp_path / "space")]) == 0
    front = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---\n")[1])
    assert front["models"] == ["owner/model"] and front["title"] == "owner/model"
    assert not (tmp_path / "space" / "model").exists()
    assert "MODEL = 'owner/model'" in (tmp_path / "space" / "app.py").read_text()


def test_a_folder_that_holds_something_is_not_written_to(checkpoint, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", str(checkpoint), "--export", str(tmp_path)]) == 2
    assert (
        f"{tmp_path} is not empty: it holds mine.txt. Choose another folder, or replace it" in capsys.readouterr().err
    )
    assert main(["demo", str(checkpoint), "--export", str(tmp_path), "--overwrite"]) == 2
    assert "was not written by `llaso demo --export`" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["demo", str(checkpoint), "--export", str(tmp_path / "mine.txt")]) == 2
    assert "exists and is not a folder" in capsys.readouterr().err


def test_an_earlier_export_is_replaced_as_a_whole_when_asked_and_kept_if_the_new_one_fails(tmp_path, monkeypatch):
    out = tmp_path / "space"
    assert main(["demo", "owner/one", "--export", str(out)]) == 0
    (out / "left-over").write_text("x")
    monkeypatch.setattr("llaso.demo.space.version", lambda name: 1 / 0)
    assert main(["demo", "owner/two", "--export", str(out), "--overwrite"]) == 3
    monkeypatch.undo()
    assert "'owner/one'" in (out / "app.py").read_text() and (out / "left-over").exists()
    assert main(["demo", "owner/two", "--export", str(out), "--overwrite"]) == 0
    assert "'owner/two'" in (out / "app.py").read_text() and not (out / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["space"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "no checkpoint is there"),
        (["/nowhere/at/all", "--export", "{tmp}/space"], "no checkpoint is there"),
        (["owner/model", "--max-new-tokens", "0"], "--max-new-tokens: '0' is not a whole number from 1"),
        (["owner/model", "--port", "70000"], "--port: '70000' is not a port"),
        (["owner/model", "--overwrite"], "--overwrite is for --export"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(arguments, message, tmp_path, capsys):
    assert main(["demo", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_told(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["demo", "owner/model", "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err


def test_the_command_serves_on_loopback_until_interrupted(checkpoint):
    assert build_parser().parse_args(["demo", "m"]).host == "127.0.0.1"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llaso.cli", "demo", str(checkpoint), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            page = _page(f"http://127.0.0.1:{port}/", process)
            assert "my-model" in page
        finally:
            process.send_signal(signal.SIGINT)
            try:
                output, _ = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert process.returncode in (0, 130), output


def _page(url: str, process: subprocess.Popen) -> str:
    """The page, as soon as it is served."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(process.stdout.read() if process.stdout else "")
