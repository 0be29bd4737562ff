"""Shared by all tests: where extra fixtures lie, and an environment without network or progress bars."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import shared_fixture

from llaso_common.tasks import TASKS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

TRANSFORMERS_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "order",
    "torch_compile_test",
)
"""Marks on transformers' own common tests (test_common_transformers.py)."""


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and programs under test would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for mark in TRANSFORMERS_MARKS:
        config.addinivalue_line("markers", f"{mark}: used by transformers' own tests")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers whatever ran before it: the order of tests is random."""
    random.seed(0)
    for library, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if library in sys.modules:  # importing torch for a test without it would cost seconds
            getattr(sys.modules[library], seed)(0)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A handler that a library sets while a test runs is gone in the next, and no signal stays blocked."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)


@pytest.fixture(autouse=True)
def _own_tasks_forgotten() -> Iterator[None]:
    """Tasks that a test declares are unknown to the others."""
    with TASKS.scope():
        yield


@pytest.fixture
def official_parity() -> Path:
    """The tiny checkpoint in the released format, with expected ids, embeddings, logits and losses."""
    return shared_fixture("official_parity")


@pytest.fixture
def official_outputs() -> Path:
    """The published answers of six systems on LLaSO-Eval."""
    return shared_fixture("official_outputs")


@pytest.fixture
def golden() -> Path:
    """Metric values computed with the authors' scripts."""
    return shared_fixture("golden")


@pytest.fixture
def fsdd() -> Path:
    """3,000 recordings of spoken digits."""
    return shared_fixture("fsdd")
