"""Which transformers is taken in silence, warned of, or refused; and what a saved config says of it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest
from support.tiny_llaso import tiny_llaso

from modeling_llaso.compatibility_llaso import NEWEST_TRIED, TRIED_TRANSFORMERS, check_transformers, release
from modeling_llaso.configuration_llaso import LlasoConfig

IMPORT = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: {version!r} if name == "transformers" else real(name)
import modeling_llaso
import modeling_llaso.compatibility_llaso
"""


@pytest.mark.parametrize("version", ["5.16.1", "5.18.0", "5.22.2", NEWEST_TRIED, f"{NEWEST_TRIED}.dev0"])
def test_the_tried_range_is_taken_in_silence(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_transformers(version)


@pytest.mark.parametrize("version", ["4.57.6", "5.9.0", "5.16.0", "5.16.0rc1"])
def test_an_older_one_is_refused_with_the_remedy(version):
    with pytest.raises(ImportError, match=r"does not run on transformers .*pip install 'transformers>=5\.16\.1,<="):
        check_transformers(version)


def test_a_newer_one_gives_one_warning_that_names_the_range():
    later = f"{release(NEWEST_TRIED)[0]}.{release(NEWEST_TRIED)[1] + 1}.0"
    code = IMPORT.format(version=later)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("UserWarning: LLaSO was tried with transformers 5.16.1 to") == 1
    assert later in done.stderr


def test_importing_the_package_refuses_before_anything_is_loaded():
    done = subprocess.run([sys.executable, "-c", IMPORT.format(version="5.9.0")], capture_output=True, text=True)
    assert done.returncode == 1 and "ImportError: LLaSO does not run on transformers 5.9.0" in done.stderr


def test_a_saved_config_names_the_tried_range_and_an_older_one_is_opened(tmp_path):
    model, _ = tiny_llaso("trim")
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["tried_transformers"] == TRIED_TRANSFORMERS
    del fields["tried_transformers"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert LlasoConfig.from_pretrained(tmp_path).tried_transformers == TRIED_TRANSFORMERS
    (tmp_path / "config.json").write_text(json.dumps({**fields, "tried_transformers": ">=6"}))
    assert LlasoConfig.from_pretrained(tmp_path).tried_transformers == TRIED_TRANSFORMERS  # of the code that runs
