"""ExecuTorch programs in ExecuTorch's own runtime: answers and logits are the model's.

Skipped without executorch, whose extra `make test` does not install: it brings scikit-learn and Core ML's tools.
"""

from __future__ import annotations

import pytest
import soundfile

pytest.importorskip("executorch", reason="executorch is not installed: pip install 'llaso[executorch]'")

from support.tiny_families import family_llaso
from support.tiny_llaso import question, tone

from llaso.cli import main
from llaso.exporting.executorch_files import export_executorch
from llaso.exporting.executorch_model import ExecuTorchLlaso
from llaso.exporting.exported_check import compare_clip, compare_prompts
from llaso.exporting.own_answers import FORMS

QUESTION = "What is said?"
SETTINGS = {
    "llama3": {"audio_padding": "trim", "projector_stride": 30, "projector_pooling": "concatenate"},
    "qwen3": {"audio_padding": "full", "projector_stride": 50},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", SETTINGS)
def test_answers_and_logits_are_the_models(family, tmp_path):
    """A short clip, and one of two windows; a prompt beyond the limit set at export is refused."""
    model, processor = family_llaso(family, **SETTINGS[family])
    export_executorch(model, processor, tmp_path / "executorch", most_tokens=512)
    files = ExecuTorchLlaso(tmp_path / "executorch")
    assert compare_prompts(files, processor, QUESTION) == dict.fromkeys(FORMS, True)
    for seconds in (0.7, 31.5):
        one = compare_clip(files, model, processor, tone(seconds), QUESTION, 5)
        assert one.equal and len(one.ours) == 5
        assert one.gap < 1e-4
    with pytest.raises(ValueError, match="reads at most 512"):
        next(files.steps(files.processor(question("word " * 400), [tone(1.0)]), 1))


@pytest.mark.slow
def test_the_commands(tmp_path, capsys):
    model, processor = family_llaso("smollm2", text={"num_hidden_layers": 1})
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "clip.wav", tone(1.5), 16_000)
    out = str(tmp_path / "executorch")
    assert main(["export", "executorch", str(tmp_path / "model"), out, "--most-tokens", "300"]) == 0
    assert "decoder.pte: " in capsys.readouterr().out
    assert main(["export", "check", out, str(tmp_path / "clip.wav"), "--max-new-tokens", "3"]) == 0
    assert "1 of 1 clips with equal ids" in capsys.readouterr().out
