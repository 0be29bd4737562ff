"""Where the repository and the extra fixtures beside it lie."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
SHARED = ROOT.parent / "shared"
"""Extra fixtures beside the checkout; never part of the project."""


def shared_fixture(name: str) -> Path:
    """Return the folder `name` of the extra fixtures; skip the test, with the reason, if it is absent."""
    path = SHARED / "fixtures" / name
    if not path.exists():
        pytest.skip(f"extra fixtures are not beside this checkout: ../shared/fixtures/{name}")
    return path
