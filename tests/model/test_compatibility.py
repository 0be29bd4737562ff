"""Which transformers is taken in silence, warned of, or refused; and what a saved config says of it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest
from support.tiny_llaso import ask, question, tiny_llaso, tone
from transformers import AutoModelForMultimodalLM, AutoProcessor, DynamicCache

from modeling_llaso.compatibility_llaso import (
    CACHE_SINCE_5_24,
    NEWEST_TRIED,
    TRIED_TRANSFORMERS,
    check_transformers,
    given_cache,
    release,
)
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


def test_generate_takes_a_cache_or_says_under_which_name():
    model, processor = tiny_llaso("trim")
    inputs = ask(processor, question("Who?"), [tone(0.4)])
    if CACHE_SINCE_5_24 == "cache":
        kept = model.generate(**inputs, max_new_tokens=3, cache=DynamicCache())
        assert kept.equal(model.generate(**inputs, max_new_tokens=3))
    else:
        with pytest.raises(ValueError, match="pass the cache as past_key_values="):
            model.generate(**inputs, max_new_tokens=3, cache=DynamicCache())


@pytest.mark.parametrize(("name", "message"), [("cache", "pass cache only"), ("past_key_values", "generate.. knows")])
def test_two_caches_are_refused_with_what_this_transformers_takes(name, message, monkeypatch):
    monkeypatch.setattr("modeling_llaso.compatibility_llaso.CACHE_SINCE_5_24", name)
    with pytest.raises(ValueError, match=message):
        given_cache(DynamicCache(), {"past_key_values": DynamicCache()})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint made for each padding."""
    folder = tmp_path_factory.mktemp("paddings")
    for padding in ("trim", "full"):
        for part in tiny_llaso(padding):
            part.save_pretrained(folder / padding)
    return folder


@pytest.mark.parametrize(("trained", "chosen"), [("trim", "full"), ("full", "trim")])
@pytest.mark.parametrize("parts", [("model",), ("processor",), ("model", "processor")])
def test_loading_a_checkpoint_with_another_padding_warns_once(checkpoints, trained, chosen, parts):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(2):
            if "model" in parts:
                model = AutoModelForMultimodalLM.from_pretrained(checkpoints / trained, audio_padding=chosen)
                assert model.config.audio_padding == chosen
            if "processor" in parts:
                processor = AutoProcessor.from_pretrained(checkpoints / trained, audio_padding=chosen)
                assert processor.audio_padding == chosen
    told = [str(one.message) for one in shown if issubclass(one.category, UserWarning)]
    assert [text for text in told if "audio_padding" in text] == [
        f"the checkpoint was trained with audio_padding={trained!r} and is loaded with {chosen!r}. The encoder's "
        "vectors differ between the two, most of all at the end of a clip, so answers get worse. Leave audio_padding "
        "out, or train the model on with it"
    ]


@pytest.mark.parametrize("padding", ["trim", "full"])
@pytest.mark.parametrize("named", [False, True])
def test_the_padding_it_was_trained_with_is_taken_in_silence(checkpoints, padding, named):
    given = {"audio_padding": padding} if named else {}
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert AutoModelForMultimodalLM.from_pretrained(checkpoints / padding, **given).config.audio_padding == padding
        assert AutoProcessor.from_pretrained(checkpoints / padding, **given).audio_padding == padding
    assert not [one for one in shown if "audio_padding" in str(one.message)]
