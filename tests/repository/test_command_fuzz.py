"""Every command, every option, every kind of wrong value: one line and exit code 2, never a traceback.

The commands and their options are read from the parser, so that a new option is tried without a word here; a new
command needs its required values below. Two passes: in the first nothing that is named is there, in the second
everything is, and one value at a time is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from support.tiny_llaso import tone
from support.tiny_run import write_run

from llaso.cli import build_parser, main
from llaso.commands import option_types

NUMBERS = ("banana", "", "-1", "nan", "inf", "-inf", "1e400", "9" * 30, "0x10", "1,5")
"""Wrong for every number: all are refused while the options are read."""
LINES = 10
"""Of a message, at most: some list what was found, or how a file is to look."""
RUN_ON = {"serve", "demo", "quickstart", "export onnx", "export executorch"}
"""Commands that would not come back, or would take long, if everything they ask for were there."""


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, list]]:
    """Every command with its options and positionals."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in inner:
        for name, child in action.choices.items():
            yield from leaves(child, (*words, name))
    if not inner:
        yield " ".join(words), [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]


PARSER = build_parser()
COMMANDS = dict(leaves(PARSER))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Everything that a command may ask for: corpora, models, answers and a report, in small."""
    return write_run(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def world(run, tmp_path, monkeypatch) -> SimpleNamespace:
    """Good things to name and bad ones, of this test alone, in the current folder; and no waiting between tries."""
    monkeypatch.setattr("time.sleep", lambda duration: None)
    monkeypatch.setattr("llaso.cli.build_parser", lambda: PARSER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    soundfile.write("good.wav", tone(0.3), 16_000)
    Path("empty").touch()
    Path("random").write_bytes(bytes(range(256)) * 20)
    Path("text.txt").write_text("neither audio nor YAML: [nor {JSON\n", encoding="utf-8")
    answers = next((run / "predictions").glob("*.jsonl"))
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    ratings = "".join(f"{row['file']},{row['id']},{1 + number % 5}\n" for number, row in enumerate(rows))
    Path("ratings.csv").write_text(f"file,id,score\n{ratings}", encoding="utf-8")
    Path("chats.jsonl").write_text('{"prompt": "Who?", "response": "They."}\n', encoding="utf-8")
    Path("holds").mkdir()
    Path("holds/something.txt").touch()
    Path("broken").mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "scores.json", "recipe.yaml"):
        (Path("broken") / name).write_bytes(bytes(range(256)))
    wrong = ["missing", "empty", "random", "text.txt", "holds", "broken", "good.wav/below", "x" * 300, "", "\0"]
    wrong += ["nobody/nothing", "~nobody/x"]
    return SimpleNamespace(folder=tmp_path, run=run, good="good.wav", wrong=wrong)


def required(command: str, world, there: bool) -> dict[str, list[str]]:
    """Values of what a command must be given, by destination: good ones, or names of things that are not there."""
    run = world.run
    files = {
        "files": world.good,
        "clips": world.good,
        "question": "Who speaks?",
        "model": run / "llaso-tiny",
        "models": run / "llaso-tiny",
        "encoder": run / "backbones" / "encoder",
        "llm": run / "backbones" / "llama",
        "to_official": run / "llaso-tiny",
        "recipe": "quickstart_stage1",
        "runs": run / "stage1",
        "sources": "text.txt",
        "folder": run / "llaso-eval",
        "folders": run / "predictions",
        "systems": run / "predictions",
        "system": run / "predictions",
        "path": run / "predictions",
        "paths": run / "predictions",
        "predictions": run / "predictions",
        "scores": run / "predictions",
        "data": run / "llaso-eval",
        "run_dir": run,
        "judge_model": run / "backbones" / "llama",
        "chats": "chats.jsonl",
        "first": "ratings.csv",
        "second": "ratings.csv",
    }
    constant = {"question": ["Who?"], "corpus": ["align"], "name": ["gate"], "repo_id": ["nobody/nothing"]}
    values: dict[str, list[str]] = {}
    small = {
        "max_new_tokens": ["1"],
        "limit": ["2"],
        "max_calls": ["2"],
        "resamples": ["20"],
        "wanted": ["2"],
    }  # right values are carried out
    for action in COMMANDS[command]:
        if there and action.dest in small:
            values[action.dest] = small[action.dest]
        if action.dest in constant and (not action.option_strings or action.required):
            values[action.dest] = constant[action.dest]
        elif action.dest == "out" and action.required:
            values["out"] = ["out"]
        elif action.required and (not action.option_strings or action.dest in files):
            good = files[action.dest]  # KeyError: a new command needs a value here
            values[action.dest] = [str(good if there else "missing")]
    if command == "convert":
        values["to_official"] = [str(files["to_official"] if there else "missing")]
    if command in ("eval generate", "eval run"):
        values["model"] = [str(files["model"] if there else "missing")]
    if command == "quickstart":
        values["speech"] = ["missing"]
    if command == "train":
        values["dry_run"] = []
    if command == "data import-release" and there:
        values["folder"] = ["holds"]
    return values


def command_line(command: str, values: dict[str, list[str]]) -> list[str]:
    """Options first, each as `--name=value` so that a value may begin with a dash; then the positionals."""
    options, positionals = [], []
    for action in COMMANDS[command]:
        if action.dest not in values:
            continue
        given = values[action.dest]
        if not action.option_strings:
            positionals += given
        elif given:
            options.append(f"{action.option_strings[-1]}={given[0]}")
        else:
            options.append(action.option_strings[-1])
    return [*command.split(), *options, "--", *positionals] if positionals else [*command.split(), *options]


def is_number(action: argparse.Action) -> bool:
    """Whether an option takes a number, which every type does that is not one of names."""
    return action.type not in (None, option_types.path, option_types.some_text, option_types.device)


def wrong_values(action: argparse.Action, world) -> list[str]:
    if action.choices is not None:
        return ["banana", "", "\0"]
    if action.type is option_types.device:
        return ["banana", "", "cuda:99", "cpu:7", "meta", "xla", "0"]
    return list(NUMBERS) if is_number(action) else world.wrong


def surely_wrong(action: argparse.Action) -> bool:
    """Whether no value of `wrong_values` can be right; of names and texts, some may."""
    return action.choices is not None or action.type is option_types.device or is_number(action)


def fault(argv: list[str], codes: tuple[int, ...], capsys) -> str:
    """What is wrong with the way a command ended; nothing if all is well."""
    for made in ("missing", "out"):
        shutil.rmtree(made, ignore_errors=True)
        Path(made).unlink(missing_ok=True)
    try:
        code = main(argv)
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    said = capsys.readouterr().err
    shown = f"llaso {' '.join(argv)!r} ended with {code}: {said[-500:]}"
    if code not in codes or "Traceback" in said:
        return shown
    if code == 2:
        lines = said[said.index("llaso") :].splitlines() if "llaso" in said else []
        message = [number for number, line in enumerate(lines) if ": error: " in line]
        if not message or len(lines[message[-1]]) > 1500 or len(lines) - message[-1] > LINES:
            return shown
    return ""


def try_all(command: str, world, there: bool, capsys) -> None:
    """Give every option of a command every wrong value, and tell all faults at once."""
    tried: Counter[str] = Counter()
    faults = []
    for action in COMMANDS[command]:
        if action.nargs == 0 or (there and surely_wrong(action)):  # refused before anything that is there is opened
            continue
        for value in wrong_values(action, world):
            base = required(command, world, there)
            codes = (2,) if surely_wrong(action) or (base and not there) else (0, 1, 2)
            faults.append(fault(command_line(command, base | {action.dest: [value]}), codes, capsys))
            tried[action.dest] += 1
    print(f"llaso {command}: {tried.total()} wrong values of {len(tried)} options")
    assert not any(faults), "\n\n".join(filter(None, faults))


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_end_in_one_line_if_nothing_is_there(command, world, capsys):
    try_all(command, world, there=False, capsys=capsys)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN_ON])
def test_wrong_values_end_in_one_line_if_everything_else_is_right(command, world, capsys):
    try_all(command, world, there=True, capsys=capsys)


# What is there ---------------------------------------------------------------------------------------------------

GO_ON = {"data plan", "data build", "data import-release", "quickstart", "real", "experiment"}
"""Commands that continue in a folder of their own; the tests of each show what it refuses there."""
WRITERS = {command: [a.dest for a in actions if a.dest in ("out", "export")] for command, actions in COMMANDS.items()}


@pytest.mark.parametrize("command", [command for command in WRITERS if WRITERS[command] and command not in GO_ON])
def test_what_is_there_is_kept_unless_asked(command, world, capsys):
    """Every command with `--out` refuses a file and a folder that hold something, names them and the remedy."""
    (option,) = WRITERS[command]
    base = required(command, world, there=True)
    if command == "demo":
        base["model"] = [str(world.run / "llaso-tiny")]
    if command == "eval judge":
        base["tasks"] = ["ASR"]
    Path("mine").mkdir()
    Path("mine/work.txt").write_text("mine")
    Path("mine.txt").write_text("mine")
    remedies = []
    for target in ("mine", "mine.txt"):
        assert main(command_line(command, base | {option: [target]})) == 2, target
        said = capsys.readouterr().err
        assert f"error: {target} " in said, said
        remedies.append("--overwrite" in said)
        assert Path("mine.txt").read_text() == "mine"
        assert [path.name for path in Path("mine").iterdir()] == ["work.txt"]
    assert any(remedies) and "overwrite" in {action.dest for action in COMMANDS[command]}


def test_scores_do_not_replace_the_rows_of_others(world, capsys):
    """`eval score` writes two files, and looks at both before it begins."""
    Path("scores.rows.jsonl").write_text("mine")
    command = ["eval", "score", str(world.run / "predictions"), "--no-intervals", "--out", "scores.json"]
    assert main(command) == 2
    assert "scores.rows.jsonl exists. Choose another file, or replace it with --overwrite" in capsys.readouterr().err
    assert not Path("scores.json").exists() and Path("scores.rows.jsonl").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert Path("scores.json").exists() and Path("scores.rows.jsonl").read_text() != "mine"


@pytest.mark.parametrize("command", ["eval schema", "eval score", "eval hub-yaml"])
def test_a_device_is_not_replaced_by_a_file(command, world, capsys):
    """Writing in one step renames a file over its target, which would take a device or a pipe away."""
    os.mkfifo("pipe")
    values = required(command, world, there=True) | {"out": ["pipe"], "overwrite": []}
    assert main(command_line(command, values)) == 2
    assert "pipe exists and is not a regular file" in capsys.readouterr().err
    assert Path("pipe").is_fifo()
