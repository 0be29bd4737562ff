"""The documentation, held to its word: every block is run, every link leads somewhere, every page is in the site.

Blocks run in a copy of what a reader has at that point: a finished quickstart (made small), the checkout's folders,
public corpora in miniature, and a Hub on loopback.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.docs_page import RUN, SHOWN, blocks
from support.hub_server import serve
from support.paths import ROOT
from support.tiny_quickstart import COMMAND
from support.warm_python import warm

from dataset_scripts.sources import base

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if blocks(page)]
FOLDERS = ("benchmarks", "dataset_scripts", "docs", "eval_suite", "llaso", "llaso_common", "modeling_llaso")
CHECKOUT = ("Makefile", "constraints.txt", "setup.cfg", *FOLDERS)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of someone who has run the quickstart, and the environment of their shell."""
    folder = tmp_path_factory.mktemp("reader")
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    with serve(folder / "hub") as hub:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {
            **kept, "PYTHONPATH": str(ROOT / "tests"),
            "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_local", "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        with warm(folder / ".venv", environment) as shell:
            made = type_in(folder, shell, "python", str(ROOT / "tests/support/tiny_quickstart.py"))
            assert made.returncode == 0, made.stdout
            yield folder, shell


def type_in(folder: Path, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path=environment["PATH"])
    return subprocess.run(
        [str(program), *command[1:]],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=800,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, reader: tuple[Path, dict[str, str]]):
    folder, shell = reader
    if "curl " in page.read_text(encoding="utf-8") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    replace = {
        "make quickstart": COMMAND,
        "make test": "make --dry-run test",
        "max_steps: 20": "max_steps: 2",
        "your-name": "owner",
        "--port 8000": "--port 8000 --answer-tokens 32",  # a model that knows nothing never ends by itself
        "8000": str(free_port()),
    }
    typed = [f"{old}={new}" for old, new in replace.items()]
    done = type_in(folder, shell, "python", str(ROOT / "tests/support/docs_page.py"), str(page), *typed)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_what_it_is(page: Path):
    assert {block.kind for block in blocks(page)} <= set(RUN + SHOWN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_are_there(page: Path):
    """What the site's own check leaves out: the README, pictures, and files of the checkout."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [first or second for first, second in LINK.findall(text)]
    near = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    missing = [target for target in near if not (page.parent / target).exists()]
    assert not missing


def test_the_site_builds_and_has_every_page(tmp_path: Path):
    """With every link and anchor between pages checked by the generator."""
    configuration = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    shown = {page for entry in configuration["project"]["nav"] for page in entry.values()}
    assert shown == {page.name for page in PAGES[1:]}
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    for page in shown - {"index.md"}:
        assert (tmp_path / "site" / Path(page).stem / "index.html").is_file(), page


def test_every_extra_is_explained():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    start = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert {extra for extra in setup["options.extras_require"] if f"| `{extra}` |" not in start} == set()


def test_every_corpus_is_listed_with_its_terms():
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for source in (base.load(name) for name in base.names()):
        may = "yes" if source.redistributable else "no"
        assert f"| `{source.name}` | {source.title} | {', '.join(source.tasks)} | {source.license} | {may} |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_that_are_named_exist(page: Path):
    named = set(re.findall(r"test_\w+\.py", page.read_text(encoding="utf-8")))
    assert named <= {file.name for file in (ROOT / "tests").rglob("test_*.py")}
    for file, test in re.findall(r"`tests/([\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (file, test)
