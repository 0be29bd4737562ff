"""Runs a page of the documentation: its fenced blocks, in order, as a reader would type them.

Shell blocks share one shell, Python blocks one namespace. A block with a title is the file of that name. A
`console` block shows commands after `$ ` and what they print; `…` stands for anything. A block under a line that
begins with `*Not run here` is not run: its commands are parsed, its recipes weighed, its Python compiled. `text` and
`bibtex` blocks are for the eye. As a program (`python docs_page.py PAGE [OLD=NEW …]`) it runs a page in the folder it
is in.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(r"(?P<indent> *)```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\s*")
NOT_RUN = "*Not run here"
RUN = ("bash", "console", "python", "yaml")
SHOWN = ("text", "bibtex")
DONE = "--- end of block, exit code "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: the language it is marked with.
        code: its lines, without the fence's indent.
        line: of the page where the code begins.
        title: the file it is, if any.
        run: False under a `*Not run here` line.
    """

    kind: str
    code: str
    line: int
    title: str = ""
    run: bool = True


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of a page, in order.

    Raises:
        ValueError: a fence is never closed.
    """
    found, paragraph, ended, lines = [], "", True, page.read_text(encoding="utf-8").split("\n")
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        opening = FENCE.fullmatch(line)
        if not opening:
            if line.strip() and ended:
                paragraph = line.strip()  # its first line
            ended = not line.strip()
            continue
        code = []
        for _, inner in numbered:
            if inner.strip() == "```":
                break
            code.append(inner.removeprefix(opening["indent"]))
        else:
            raise ValueError(f"{page}:{number}: this block is never closed")
        run = not paragraph.startswith(NOT_RUN)
        found.append(Block(opening["kind"], "\n".join(code), number + 1, opening["title"] or "", run))
        paragraph, ended = "", True
    return found


def commands(code: str) -> list[str]:
    """Return the commands of a shell block: comments left out, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", code)
    return [line for line in joined.split("\n") if line.strip() and not line.lstrip().startswith("#")]


class Shell:
    """A bash process for the whole page, which stops at the first command that fails."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["bash", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, code: str, strict: bool = True) -> tuple[int, str]:
        """Run a block and return its exit code and output; if it is strict, its first failing command ends it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        guard = "set -euo pipefail" if strict else "set +eu"
        self.process.stdin.write(f"{guard}\n{{ {code}\n}} < /dev/null\nstatus=$?; echo; echo '{DONE}'$status\n")
        self.process.stdin.flush()
        output = []
        for line in self.process.stdout:
            print(line, end="", flush=True)
            if line.startswith(DONE):
                return int(line.removeprefix(DONE)), "".join(output)
            output.append(line)
        return self.process.wait() or 1, "".join(output)


def run(page: Path, replace: Mapping[str, str]) -> None:
    """Run a page in the folder this process is in.

    Args:
        page: the file.
        replace: what is typed otherwise here, such as the address of a server.

    Raises:
        AssertionError: a block failed, or did not print what the page shows.
    """
    shell, namespace = Shell(), {"__name__": "__main__"}
    for block in blocks(page):
        code, place = block.code, f"{page.name}:{block.line}"
        for old, new in replace.items():
            code = code.replace(old, new)
        print(f"=== {place} {block.kind}{'' if block.run else ', not run'}\n{code}\n---", flush=True)
        assert block.kind in RUN + SHOWN, f"{place}: a block marked {block.kind or 'with no language'!r}"
        if block.kind in SHOWN:
            continue
        if not block.run:
            check(block, code, place)
        elif block.title:
            Path(block.title).write_text(code + "\n", encoding="utf-8")
        elif block.kind == "bash":
            status, _ = shell.run(code)
            assert status == 0, f"{place}: exit code {status}"
        elif block.kind == "console":
            run_console(shell, code, place)
        else:
            assert block.kind == "python", f'{place}: which file is it? ```{block.kind} title="…"'
            exec(compile(code, place, "exec"), namespace)


def run_console(shell: Shell, code: str, place: str) -> None:
    """Run the commands of a console block and hold what each prints against what the page shows."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = f"{command[:-1]} {more.strip()}"
        _, printed = shell.run(command, strict=False)
        assert "Traceback (most recent call last)" not in printed, f"{place}: {command} fell over"
        lines = iter([" ".join(line.split()) for line in printed.split("\n")])
        for wanted in filter(str.strip, shown.split("\n")):
            pattern = ".*".join(map(re.escape, " ".join(wanted.split()).split("…")))
            assert any(re.fullmatch(pattern, line) for line in lines), f"{place}: {command} did not print {wanted!r}"


def check(block: Block, code: str, place: str) -> None:
    """Check what can be known of a block without running it."""
    if block.kind == "python":
        for node in ast.walk(ast.parse(code)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert all(map(importlib.util.find_spec, names)), f"{place}: no module {names}"
        return
    assert block.kind == "bash", f"{place}: a {block.kind} block must run"
    for command in commands(code):
        try:
            check_command([word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)])
        except SystemExit as refused:
            raise AssertionError(f"{place}: {command} is refused") from refused


def check_command(words: list[str]) -> None:
    """Parse a command that is not run; a training command runs with `--dry-run` too."""
    from llaso.cli import build_parser

    if words[0] == "llaso":
        arguments = build_parser().parse_args(words[1:])
        if arguments.command == "train":
            from llaso.training.cost.dry_run import dry_run

            assert dry_run(arguments.recipe, arguments.overrides).steps > 0
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        arguments = launch_command_parser().parse_args(words[2:])
        assert arguments.module and arguments.training_script == "llaso.cli", words
        assert load_config_from_file(arguments.config_file).num_processes > 0
        check_command(["llaso", *arguments.training_script_args])
    elif words[:2] == ["python", "-m"]:
        said = io.StringIO()
        section = words[3:4] if words[2] == "benchmarks" else []
        sys.argv = [words[2], *section, "--help"]
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
            runpy.run_module(words[2], run_name="__main__")
        options = [word for word in words[3:] if word.startswith("--")]
        assert all(option in said.getvalue() for option in options), words
    elif words[0] in ("inspect", "lmms_eval"):
        from eval_suite.task_metrics import TASKS

        named = [re.sub(r"^llaso[/_]", "", word) for word in words if re.match(r"llaso[/_]", word)]
        assert named and {name.upper() for name in named} <= {code.upper() for code in TASKS}, words
    elif words[0].startswith("vllm-env/bin/"):  # tests/exporting/test_vllm.py runs vLLM's server, where there is one
        from benchmarks.serving import VLLM_OPTIONS

        options = {word for word in words[1:] if words[1] == "-m" and word.startswith("--")}
        assert options <= {*VLLM_OPTIONS, "--model", "--served-model-name", "--limit-mm-per-prompt"}, words
    elif words[0] == "llama-server":
        assert all(Path(words[words.index(option) + 1]).is_file() for option in ("--model", "--mmproj")), words
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, stdout=subprocess.DEVNULL)
    elif words[:2] == ["pip", "install"]:
        from importlib.metadata import metadata

        extras: Any = metadata("llaso").get_all("Provides-Extra")
        asked = re.findall(r"^\.\[(.*?)\]", words[-1])
        assert set(",".join(asked).split(",")) <= {"", *extras}, words
    else:
        raise AssertionError(f"no way to check {words[0]} without running it")


if __name__ == "__main__":
    run(Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:]))
