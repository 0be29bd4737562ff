"""ExecuTorch programs in ExecuTorch's own runtime: answers and logits equal the model's, in both paddings.

The extra `executorch` is large and is not installed for the tests; where it is, they run.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

pytest.importorskip("executorch", reason="executorch is not installed: pip install 'llaso[executorch]'")

from support.docs_page import blocks, commands
from support.paths import ROOT
from support.tiny_families import family_llaso
from support.tiny_llaso import ask, question, tone

from llaso.cli import main
from llaso.exporting.executorch_files import export_executorch
from llaso.exporting.executorch_model import ExecutorchLlaso
from llaso.exporting.parts_check import CLOSE

SETTINGS = {
    "llama3": {"audio_padding": "trim", "projector_stride": 2, "projector_pooling": "concatenate"},
    "qwen2": {"audio_padding": "full", "projector_stride": 50},
}
"""A family for each padding; the first is pooled as the quickstart's model."""
CONTEXT = 1200


class Exported(NamedTuple):
    """A model, its processor, its checkpoint, and the folder of its programs."""

    model: object
    processor: object
    checkpoint: str
    out: str


@pytest.fixture(scope="module", params=SETTINGS)
def exported(request, tmp_path_factory):
    """A model that the command has exported."""
    model, processor = family_llaso(request.param, **SETTINGS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint, out = str(folder / "model"), str(folder / "executorch")
    for part in (model, processor):
        part.save_pretrained(checkpoint)
    assert main(["export", "executorch", checkpoint, out, "--context", str(CONTEXT)]) == 0
    return Exported(model, processor, checkpoint, out)


@pytest.mark.parametrize("seconds", [[0.02], [1.3], [36.2], [3.0, 0.7]])
def test_answers_and_logits_are_the_models(seconds, exported):
    clips = [tone(length, 200 + 100 * place) for place, length in enumerate(seconds)]
    conversation = question("What is said?", len(clips))
    inputs = ask(exported.processor, conversation, clips)
    ours = exported.model.generate(
        **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    files = ExecutorchLlaso(exported.out)
    steps = list(files.steps(files.processor(conversation, clips), 5))
    assert [number for number, _ in steps] == ours.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    for (_, theirs), logits in zip(steps, ours.logits, strict=True):
        np.testing.assert_allclose(theirs, logits[0].numpy(), atol=1e-4, rtol=0)


def test_the_description_says_what_the_programs_take(exported):
    description = json.loads(Path(exported.out, "llaso_executorch.json").read_text(encoding="utf-8"))
    parts = description["parts"]
    assert [part["file"] for part in parts.values()] == ["audio.pte", "embed.pte", "decoder.pte"]
    assert parts["decoder"]["inputs"]["inputs_embeds"][:2] == [1, "tokens"]
    assert list(parts["audio"]["inputs"]) == ["input_features"] and parts["audio"]["inputs"]["input_features"][0] == 1
    assert description["max_tokens"] == CONTEXT


def test_more_than_the_context_is_refused(exported, tmp_path):
    files = ExecutorchLlaso(exported.out)
    with pytest.raises(ValueError, match=f"reads at most {CONTEXT}"):
        files.generate("word " * CONTEXT)
    most = exported.model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"takes {most:,} tokens at most"):
        export_executorch(exported.model, exported.processor, tmp_path / "out", context=most + 1)
    with pytest.raises(ValueError, match="llaso_executorch.json is missing; `llaso export executorch` writes it"):
        ExecutorchLlaso(tmp_path)


def test_the_check_tells_equal_from_different(exported, tmp_path, capsys):
    clip = str(tmp_path / "clip.wav")
    soundfile.write(clip, tone(0.8), 16_000)
    check = ["export", "check", exported.out, clip, "--max-new-tokens", "3"]
    assert main(check) == 0
    assert f"1 of 1 clips with equal ids and logits within {CLOSE:g}" in capsys.readouterr().out
    family = "llama3" if exported.processor.audio_padding == "trim" else "qwen2"
    other, _ = family_llaso(family, seed=1, **SETTINGS[family])
    for part in (other, exported.processor):
        part.save_pretrained(tmp_path / "other")
    assert main([*check, "--model", str(tmp_path / "other")]) == 1


def test_the_blocks_of_the_page_run(exported, tmp_path, monkeypatch, capsys):
    """docs/export.md, by a reader whose model was exported by the page's command, which the fixture gives."""
    monkeypatch.chdir(tmp_path)
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/llaso-tiny").symlink_to(exported.checkpoint)
    Path("runs/executorch").symlink_to(exported.out)
    soundfile.write("runs/quickstart/held-out.flac", tone(1.0), 16_000)
    page = [block.code for block in blocks(ROOT / "docs/export.md")]
    (shell,) = [code for code in page if "llaso export executorch" in code]
    export, check = commands(shell)
    assert export == "llaso export executorch runs/quickstart/llaso-tiny runs/executorch"
    assert main([*shlex.split(check)[1:], "--max-new-tokens", "3"]) == 0
    (code,) = [code for code in page if "ExecutorchLlaso(" in code]
    capsys.readouterr()
    exec(compile(code.replace('.flac")', '.flac", 3)'), "export.md", "exec"), {})
    assert capsys.readouterr().out
