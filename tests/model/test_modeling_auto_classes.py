"""Fresh processes: the Auto classes after `import modeling_llaso`, and from a checkpoint's own code without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_llaso import ask, question, tiny_llaso, tone

OPEN = """
import json, sys, torch
{first}
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoProcessor
folder, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, {trust})
model = AutoModelForMultimodalLM.from_pretrained(folder, {trust})
headless = AutoModel.from_pretrained(folder, {trust})
inputs = torch.load(f"{{folder}}/inputs.pt")
with torch.no_grad():
    logits = model(**inputs).logits
    hidden = headless(**inputs).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), logits)
try:
    headless.generate(**inputs)
    refused = ""
except ValueError as error:
    refused = str(error)
model.save_pretrained(out)
processor.save_pretrained(out)
print(json.dumps({{
    "classes": [type(thing).__module__.split(".")[0] for thing in (processor, model, headless, model.config)],
    "names": [type(thing).__name__ for thing in (processor, model, headless, model.config)],
    "logits": logits[0, -1, :5].tolist(),
    "tied": model.lm_head.weight is model.get_input_embeddings().weight,
    "refused": refused,
    "prompt": processor.apply_chat_template([{{"role": "user", "content": "Hi"}}]),
}}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, processor = tiny_llaso("trim")
    folder = tmp_path_factory.mktemp("checkpoint") / "llaso-tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    inputs = dict(ask(processor, [question("Who?")], [tone(0.4)]))
    torch.save(inputs, folder / "inputs.pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1, :5]
    return folder, logits, processor.apply_chat_template([{"role": "user", "content": "Hi"}])


def run(code: str, *arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(checkpoint, printed: str, home: str) -> None:
    _, logits, prompt = checkpoint
    report = json.loads(printed.splitlines()[-1])
    assert report["names"] == ["LlasoProcessor", "LlasoForConditionalGeneration", "LlasoModel", "LlasoConfig"]
    assert report["classes"] == [home] * 4
    torch.testing.assert_close(torch.tensor(report["logits"]), logits)
    assert report["tied"] and report["prompt"] == prompt
    assert "AutoModelForMultimodalLM" in report["refused"]


@pytest.mark.slow
def test_auto_classes_open_a_checkpoint_in_a_fresh_process(checkpoint, tmp_path):
    printed = run(OPEN.format(first="import modeling_llaso", trust=""), checkpoint[0], tmp_path / "again")
    check(checkpoint, printed, "modeling_llaso")


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor; import modeling_llaso",
        "import modeling_llaso.modeling_llaso",
    ],
    ids=["transformers first", "ours first"],
)
def test_the_order_of_imports_does_not_matter(first):
    printed = run(
        f"{first}\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM\n"
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING\n"
        "config = type(AutoConfig.for_model('llaso'))\n"
        "models = (AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM)\n"
        "print([config.__name__, *(m._model_mapping[config].__name__ for m in models), "
        "PROCESSOR_MAPPING[config].__name__])"
    )
    generates = "LlasoForConditionalGeneration"
    assert printed.strip() == str(["LlasoConfig", "LlasoModel", generates, generates, "LlasoProcessor"])


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code_if_the_package_is_missing(checkpoint, tmp_path):
    """And what is saved from there carries the code on."""
    hide = 'sys.modules["modeling_llaso"] = None'
    code = OPEN.format(first=hide, trust="trust_remote_code=True")
    cache = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    printed = run(code, checkpoint[0], tmp_path / "again", **cache)
    check(checkpoint, printed, "transformers_modules")
    files = {path.name for path in (tmp_path / "again").glob("*.py")}
    assert files == {f"{name}_llaso.py" for name in ("compatibility", "configuration", "modeling", "processing")}
    auto_map = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_llaso.LlasoConfig",
        "AutoModel": "modeling_llaso.LlasoModel",
        "AutoModelForMultimodalLM": "modeling_llaso.LlasoForConditionalGeneration",
    }


def test_the_package_alone_imports_nothing_heavy():
    code = (
        "import sys, llaso.cli as cli\n"
        "cli.build_parser()\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'datasets') if name in sys.modules])"
    )
    assert run(code).strip() == "[]"
