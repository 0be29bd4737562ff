"""The blocks of docs/export.md that need llama.cpp, run if it is installed: the check and the client.

The other blocks, and the options of these, are tried by test_docs.py everywhere.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'llaso[export]'")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")

from support.docs_page import blocks, commands
from support.paths import ROOT
from support.tiny_families import family_llaso
from support.tiny_llaso import tone

from llaso.cli import main
from llaso.exporting.llama_cpp_check import LlamaCppServer

PAGE = ROOT / "docs/export.md"


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """The folder of a reader who has trained `runs/full` and exported it by the page's command."""
    monkeypatch.chdir(tmp_path)
    model, processor = family_llaso("smollm2")
    for part in (model, processor):
        part.save_pretrained("runs/full")
    Path("runs/quickstart").mkdir()
    soundfile.write("runs/quickstart/held-out.flac", tone(2.0), 16_000)
    for command in page_commands("llaso export gguf runs/full "):
        assert main(shlex.split(command)[1:]) == 0
    return tmp_path


def page_commands(beginning: str) -> list[str]:
    """The page's commands that begin so; at least one."""
    shell = [block.code for block in blocks(PAGE) if block.kind == "bash"]
    found = [command for code in shell for command in commands(code) if command.startswith(beginning)]
    assert found, beginning
    return found


def test_the_check_passes(reader, capsys):
    (command,) = page_commands("llaso export check runs/full-gguf ")
    assert main([*shlex.split(command)[1:], "--max-new-tokens", "4"]) == 0
    assert "1 of 1 clips with equal prompt lengths and answers" in capsys.readouterr().out


def test_the_client_is_answered(reader, capsys):
    """llama-server's own command line is not in xllamacpp; the server behind it is."""
    (command,) = page_commands("llama-server ")
    words = shlex.split(command)
    model, mmproj = (Path(words[words.index(option) + 1]) for option in ("--model", "--mmproj"))
    assert model.parent == mmproj.parent and model.is_file() and mmproj.is_file()
    server = LlamaCppServer(model.parent, context=1000)
    (code,) = [block.code for block in blocks(PAGE) if block.kind == "python" and "OpenAI(" in block.code]
    address = f"{words[words.index('--host') + 1]}:{words[words.index('--port') + 1]}"
    assert address in code
    exec(compile(code.replace(f"http://{address}", server.server.listening_address), str(PAGE), "exec"), {})
    assert capsys.readouterr().out.strip()
