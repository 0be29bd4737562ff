"""The lowest transformers, the one in constraints.txt and the newest: each in an environment of its own.

Slow: `make test-versions`, or `LLASO_TEST_VERSIONS=1 pytest -m versions`. `LLASO_TEST_VERSIONS="5.19.0 5.22.0"` names
others. The environments stay in `.cache/versions` and are used again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from support.paths import ROOT

from modeling_llaso.compatibility_llaso import LOWEST_TRIED

CHOICE = os.environ.get("LLASO_TEST_VERSIONS", "")
CONSTRAINTS = ROOT / "constraints.txt"
HOME = ROOT / ".cache" / "versions"
FOLLOWS_TRANSFORMERS = ("transformers", "huggingface_hub")
"""What constraints.txt pins and an environment does not: the version under test decides."""
PACKAGES = ("pytest", "pytest-timeout", "hypothesis", "scipy", "rapidfuzz", "psutil", "Jinja2", "matplotlib")
TESTS = (
    "tests/model/test_modeling_llaso.py",
    "tests/model/test_processing_llaso.py",
    "tests/model/test_modeling_auto_classes.py",
    "tests/model/test_modeling_official_parity.py",
    "tests/model/test_golden_numerics.py",
    "tests/model/test_compatibility.py",
    "tests/alignment/test_joint_decoding.py",
    "tests/serving/test_serving_batch.py",
    "tests/training/test_training_compute.py",
    "tests/training/test_training_held_out.py",
    "tests/training/test_training_packing.py",
)

pytestmark = [
    pytest.mark.versions,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not CHOICE, reason="takes half an hour: run `make test-versions`"),
]


def pinned() -> str:
    found = re.search(r"^transformers==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found.group(1)


def newest() -> str:
    said = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "transformers"], capture_output=True, text=True, check=True
    ).stdout
    found = re.match(r"transformers \((\S+)\)", said)
    assert found is not None, said
    return found.group(1)


def chosen() -> list[str]:
    if not CHOICE:
        return [LOWEST_TRIED, pinned()]
    if CHOICE != "1":
        return CHOICE.split()
    return list(dict.fromkeys((LOWEST_TRIED, pinned(), newest())))


VERSIONS = chosen()


@cache
def environment(version: str) -> Path:
    """The Python of an environment with this transformers, made from the registry if it is not there yet."""
    wanted = "\n".join((version, *PACKAGES, CONSTRAINTS.read_text(), (ROOT / "setup.cfg").read_text()))
    folder = HOME / f"{version}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if (folder / "ready").is_file():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    limits = folder / "constraints.txt"
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    limits.write_text("\n".join(line for line in lines if line.split("==")[0] not in FOLLOWS_TRANSFORMERS))
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(limits)]
    subprocess.run([*install, "torch"], check=True)  # first and alone: see the Makefile
    ours = f"{ROOT}[train,serve]"
    subprocess.run([*install, f"transformers=={version}", "-e", ours, *PACKAGES], check=True)
    (folder / "ready").touch()
    return python


def run(version: str, *arguments: str) -> str:
    environment_ = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    environment_.pop("LLASO_TEST_VERSIONS", None)
    done = subprocess.run(
        [str(environment(version)), *arguments], cwd=ROOT, capture_output=True, text=True, env=environment_
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_the_tests_of_model_processor_training_and_serving_pass(version):
    installed = run(version, "-c", "import transformers; print(transformers.__version__)")
    assert installed.strip() == version
    said = run(version, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    print(said.splitlines()[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of every version."""
    folders = {version: tmp_path_factory.mktemp(f"saved-{version}") for version in VERSIONS}
    for version, folder in folders.items():
        run(version, "-m", "support.version_worker", "save", str(folder))
    return folders


@pytest.mark.parametrize("how", ["check", "check-own-code"])
@pytest.mark.parametrize("reader", VERSIONS)
@pytest.mark.parametrize("writer", VERSIONS)
def test_what_one_version_saves_another_opens(saved, writer, reader, how):
    run(reader, "-m", "support.version_worker", how, str(saved[writer]))
