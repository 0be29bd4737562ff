"""The rule of the repository: which package may import which. A module's name in a string counts as an import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

MAY_IMPORT: dict[str, set[str]] = {
    "llaso_common": set(),
    "modeling_llaso": {"llaso_common"},
    "dataset_scripts": {"llaso_common"},
    "eval_suite": {"llaso_common"},
    "llaso": {"llaso_common", "modeling_llaso", "dataset_scripts", "eval_suite"},
}
"""Each package, and the other packages of ours that it may import. CONTRIBUTING.md and docs/design.md say the same."""
TRAINING = ("recipe", "rows", "run", "cost", "experiments")
"""Folders of llaso/training; each may import those before it. docs/design.md says the same."""
TRAVELLERS = {"compatibility_llaso", "configuration_llaso", "modeling_llaso", "processing_llaso"}
"""Files of modeling_llaso that are saved with checkpoints: they import one another, and nothing else of ours."""
NAMED_IN_TEXT = re.compile(rf"^(?:{'|'.join(MAY_IMPORT)})\.[a-z_.]+$")
"""A string that is the dotted name of one of our modules."""


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the absolute dotted names that a file imports or spells in a string, with their lines."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *filter(None, [node.module])))
            yield name, node.lineno
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED_IN_TEXT.match(node.value):
            yield node.value, node.lineno


def modules(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, package
    return files


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_the_rule_allows(package):
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}
    crossed = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in modules(package)
        for name, line in imports(file)
        if name.split(".")[0] in forbidden
        # The names of the checkpoint's own files, not of our package.
        and name
        not in ("modeling_llaso.py", "modeling_llaso.LlasoModel", "modeling_llaso.LlasoForConditionalGeneration")
    ]
    assert not crossed


def test_folders_of_training_import_those_before_them_only():
    assert {folder.name for folder in (ROOT / "llaso/training").iterdir() if (folder / "__init__.py").exists()} == {
        *TRAINING
    }
    crossed = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for place, folder in enumerate(TRAINING)
        for file in modules(f"llaso/training/{folder}")
        for name, line in imports(file)
        if name.split(".")[:2] == ["llaso", "training"] and {*name.split(".")[2:3]} & {*TRAINING[place + 1 :]}
    ]
    assert not crossed


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_pages_state_the_rule_that_is_held(page):
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    stated = {name: (holds, allowed) for name, holds, allowed in rows if name in MAY_IMPORT}
    assert stated.keys() == MAY_IMPORT.keys()
    for name, (_, allowed) in stated.items():
        expected = {"none of ours"} if not MAY_IMPORT[name] else {"all of the above"} if name == "llaso" else None
        assert {allowed.strip()} == (expected or {", ".join(f"`{one}`" for one in sorted(MAY_IMPORT[name]))})
    assert set(re.findall(r"`(\w+)/`", stated["llaso"][0])) == parts_of_llaso()


def test_the_readme_names_the_packages_and_the_parts_of_llaso():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    assert MAY_IMPORT.keys() <= set(re.findall(r"^(\w+)/", tree, re.MULTILINE))
    of_llaso = tree.partition("modeling_llaso/")[0].partition(":")[2]
    assert parts_of_llaso() <= set(re.findall(r"\w+", of_llaso))


def parts_of_llaso() -> set[str]:
    return {folder.name for folder in (ROOT / "llaso").iterdir() if (folder / "__init__.py").exists()}


def test_files_that_travel_stand_alone():
    for stem in TRAVELLERS:
        for name, line in imports(ROOT / "modeling_llaso" / f"{stem}.py"):
            first, _, rest = name.partition(".")
            if first in MAY_IMPORT and not name.startswith("modeling_llaso.Llaso"):
                assert rest.split(".")[0] in TRAVELLERS, f"{stem}.py:{line} imports {name}"


def test_the_command_line_imports_no_heavy_library():
    heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow", "soundfile", "matplotlib", "gradio"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys, llaso.cli; llaso.cli.build_parser(); print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    "quickstart transcribe ask new convert train data eval publish demo serve export".split(),
)
def test_every_command_has_help(command):
    shown = subprocess.run(
        [sys.executable, "-m", "llaso.cli", command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert shown.returncode == 0 and f"llaso {command}" in shown.stdout


def test_no_two_files_and_no_two_classes_share_a_name():
    files: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for package in MAY_IMPORT:
        for file in modules(package):
            place = str(file.relative_to(ROOT))
            if file.stem != "__init__":
                files.setdefault(file.stem, []).append(place)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    classes.setdefault(node.name, []).append(place)
    shared = {name: places for names in (files, classes) for name, places in names.items() if len(places) > 1}
    assert not shared
