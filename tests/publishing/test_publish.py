"""From a finished run to strangers: published, opened without the package, forked, opened again.

Every process is fresh and speaks to the loopback Hub alone; the forks belong to another account.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.hub_server import HubServer, connected, serve
from support.tiny_llaso import ask, question, tone
from support.tiny_run import write_run

from llaso.cli import main
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WITHOUT_THE_PACKAGE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_llaso", "dataset_scripts", "eval_suite"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoModelForMultimodalLM, AutoProcessor
out, inputs = sys.argv[1], torch.load(sys.argv[2])
def last(model):
    with torch.no_grad():
        return model.eval()(**inputs).logits[0, -1].tolist()
said = {}
"""

STRANGER = """
for repo in ("owner/llaso-tiny", "owner/pushed"):
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    model = AutoModelForMultimodalLM.from_pretrained(repo, trust_remote_code=True)
    headless = AutoModel.from_pretrained(repo, trust_remote_code=True)
    with torch.no_grad():
        hidden = headless(**inputs).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), model(**inputs).logits)
    things = (processor, model, headless)
    said[repo] = {
        "names": [type(thing).__name__ for thing in things],
        "homes": sorted({type(thing).__module__.split(".")[0] for thing in things}),
        "logits": last(model),
    }

import io, soundfile
from datasets import load_dataset
rows = load_dataset("owner/llaso-instruct", "text_audio", split="train")
row = rows[0]
clip, _ = soundfile.read(io.BytesIO(row["audio"][0]["bytes"]), dtype="float32")
said["rows"] = len(rows)
named = {}
card = open(hf_hub_download("owner/llaso-tiny", "README.md"), encoding="utf-8").read()
exec(card.split("```python\\n")[1].split("```")[0], named)
model, processor = named["model"], named["processor"]
messages = [
    {"role": one["role"], "content": [{k: v for k, v in part.items() if v is not None} for part in one["content"]]}
    for one in row["messages"]
]
request = {"audio": [clip], "tokenize": True, "return_dict": True}
asked = processor.apply_chat_template([messages[:-1]], add_generation_prompt=True, **request)
said["answer"] = model.generate(**asked, max_new_tokens=3).shape[1] - asked["input_ids"].shape[1]

from peft import LoraConfig, get_peft_model
torch.manual_seed(0)
adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\\.(q_proj|v_proj)"))
whole = processor.apply_chat_template([messages], **request)
labels = whole["input_ids"].clone()
labels[:, : asked["input_ids"].shape[1]] = -100
optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
losses = []
for _ in range(4):
    loss = adapted(**whole, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
said["losses"] = losses
said["adapted"] = last(adapted)
adapted.push_to_hub("friend/llaso-adapter", token="hf_friend", private=True)
adapted.merge_and_unload().push_to_hub("friend/llaso-merged", token="hf_friend")
processor.push_to_hub("friend/llaso-merged", token="hf_friend")
json.dump(said, open(out, "w"))
"""

FORK = """
from peft import PeftModel
base = AutoModelForMultimodalLM.from_pretrained("owner/llaso-tiny", trust_remote_code=True)
said["adapter"] = last(PeftModel.from_pretrained(base, "friend/llaso-adapter"))
merged = AutoModelForMultimodalLM.from_pretrained("friend/llaso-merged", trust_remote_code=True)
said["merged"] = last(merged)
said["home"] = type(merged).__module__
said["processor"] = type(AutoProcessor.from_pretrained("friend/llaso-merged", trust_remote_code=True)).__name__
by_name = AutoModelForMultimodalLM.from_pretrained("friend/llaso-adapter", trust_remote_code=True)
said["by_name"] = last(by_name)
json.dump(said, open(out, "w"))
"""

MODULE = """
import json, sys
import evaluate
from huggingface_hub import snapshot_download
folder = snapshot_download("owner/llaso_eval", repo_type="space", local_dir=sys.argv[1] + "/llaso_eval")
answers = {"predictions": ["It is a female voice."], "references": ["Female"]}
answers |= {"tasks": "SGC", "choices": ["Male", "Female"]}
said = [evaluate.load(name).compute(**answers)["SGC"]["accuracy"] for name in (folder, "owner/llaso_eval")]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Path]]:
    """A Hub with a run's corpora and model, the model pushed by its own methods as well, and the module."""
    root = tmp_path_factory.mktemp("published")
    run = write_run(root)
    with serve(root / "objects") as hub:
        hub.accounts["hf_friend"] = "friend"
        with connected(hub, root / "home"):
            for corpus in ("instruct", "eval"):
                assert main(["data", "validate", str(run / f"llaso-{corpus}")]) == 0
                assert main(["data", "publish", str(run / f"llaso-{corpus}"), f"owner/llaso-{corpus}"]) == 0
            assert main(["publish", str(run), "owner/llaso-tiny"]) == 0
            LlasoForConditionalGeneration.from_pretrained(run / "llaso-tiny").push_to_hub("owner/pushed")
            LlasoProcessor.from_pretrained(run / "llaso-tiny").push_to_hub("owner/pushed")
            assert main(["publish-module", "owner/llaso_eval"]) == 0
        yield hub, run


@pytest.fixture(scope="module")
def inputs(published: tuple[HubServer, Path]) -> tuple[Path, list[float]]:
    """One request's inputs on disk, and the logits that the model gives before it is published."""
    _, run = published
    processor = LlasoProcessor.from_pretrained(run / "llaso-tiny")
    model = LlasoForConditionalGeneration.from_pretrained(run / "llaso-tiny").eval()
    request = dict(ask(processor, [question("Who?")], [tone(0.4)]))
    torch.save(request, run / "inputs.pt")
    with torch.no_grad():
        return run / "inputs.pt", model(**request).logits[0, -1].tolist()


def fresh(hub: HubServer, home: Path, code: str, *arguments: Path, token: str | None = "hf_local") -> str:
    """What a new process prints; its Hub is the local one, its folder and caches are new."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment = {
        **kept, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        **({"HF_TOKEN": token} if token else {}),
    }  # fmt: skip
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def stranger(published, inputs, tmp_path_factory) -> dict:
    """What a stranger without the package and without a token sees; they fork the model under their own name."""
    home = tmp_path_factory.mktemp("stranger")
    code = WITHOUT_THE_PACKAGE + STRANGER
    fresh(published[0], home / "home", code, home / "said.json", inputs[0], token=None)
    return json.loads((home / "said.json").read_text())


def test_a_published_repository_holds_all_of_a_run(published: tuple[HubServer, Path]):
    hub, run = published
    files = hub.files("models/owner/llaso-tiny")
    assert files["model.safetensors"] == (run / "llaso-tiny" / "model.safetensors").read_bytes()
    assert {
        "config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja",
        "compatibility_llaso.py", "configuration_llaso.py", "modeling_llaso.py", "processing_llaso.py",
        "README.md", "report/report.json",
        ".eval_results/llaso-eval.yaml", "training/1-stage1/recipe.yaml", "training/data.json",
    } <= files.keys()  # fmt: skip
    assert len(hub.repos["models/owner/llaso-tiny"]) == 2  # the initial commit and ours
    revisions = {name: hub.repos[f"datasets/owner/llaso-{name}"][-1]["oid"] for name in ("instruct", "eval")}
    for name, revision in revisions.items():
        assert f"owner/llaso-{name}) at `{revision}`" in files["README.md"].decode()
    assert revisions["eval"] in files[".eval_results/llaso-eval.yaml"].decode()


def test_a_public_corpus_does_not_take_private_rows(published, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hub, run = published
    before = len(hub.repos["datasets/owner/llaso-eval"])
    with connected(hub, tmp_path):
        assert main(["data", "publish", str(run / "llaso-eval"), "owner/llaso-eval", "--private"]) == 2
    assert "owner/llaso-eval is public" in capsys.readouterr().err
    assert len(hub.repos["datasets/owner/llaso-eval"]) == before


def test_a_published_model_opens_by_name_on_another_machine(
    stranger: dict, inputs: tuple[Path, list[float]], published
):
    for repo in ("owner/llaso-tiny", "owner/pushed"):
        seen = stranger[repo]
        assert seen["names"] == ["LlasoProcessor", "LlasoForConditionalGeneration", "LlasoModel"]
        assert seen["homes"] == ["transformers_modules"]
        torch.testing.assert_close(torch.tensor(seen["logits"]), torch.tensor(inputs[1]))
    assert stranger["rows"] > 0 and 1 <= stranger["answer"] <= 3


def test_a_fork_is_trained_pushed_and_opened(stranger: dict, inputs, published, tmp_path: Path):
    hub, _ = published
    assert stranger["losses"][-1] < stranger["losses"][0]
    assert hub.private == {"models/friend/llaso-adapter"}
    adapter = hub.files("models/friend/llaso-adapter")
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "owner/llaso-tiny"
    assert "model.safetensors" not in adapter
    fork = hub.files("models/friend/llaso-merged")
    assert {f"{name}_llaso.py" for name in ("compatibility", "configuration", "modeling", "processing")} <= fork.keys()
    fresh(hub, tmp_path / "home", WITHOUT_THE_PACKAGE + FORK, tmp_path / "said.json", inputs[0], token="hf_friend")
    said = json.loads((tmp_path / "said.json").read_text())
    changed = torch.tensor(stranger["adapted"])
    assert not torch.allclose(changed, torch.tensor(inputs[1]), atol=1e-3)
    for way in ("adapter", "merged", "by_name"):
        torch.testing.assert_close(torch.tensor(said[way]), changed, rtol=1e-4, atol=1e-4, msg=way)
    assert "friend" in said["home"] and said["processor"] == "LlasoProcessor"


def test_the_published_module_scores_by_name(published, tmp_path: Path):
    said = fresh(published[0], tmp_path / "home", MODULE, tmp_path)
    assert json.loads(said.splitlines()[-1]) == [1.0, 1.0]
