"""ONNX files in ONNX Runtime: answers, logits and each part equal the model's; and the parts by torch.export alone."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'llaso[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'llaso[onnx]'")

import onnxruntime
from support.docs_page import blocks, commands
from support.paths import ROOT
from support.tiny_families import family_llaso, raise_placeholder
from support.tiny_llaso import ask, question, tone

from llaso.cli import main
from llaso.exporting.network_parts import network_parts
from llaso.exporting.onnx_files import export_onnx, write_part
from llaso.exporting.onnx_model import OnnxLlaso
from llaso.exporting.own_answers import FORMS
from llaso.exporting.parts_check import CLOSE
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration

SETTINGS = {
    "llama3": {"audio_padding": "trim", "projector_stride": 6, "projector_pooling": "concatenate"},
    "qwen2": {
        "audio_padding": "full",
        "projector_stride": 50,
        "spare_rows": 40,
        "text": {"num_hidden_layers": 1},
    },
}
"""A family for each padding; in the second, the placeholder has a row."""
QUESTION = "What is said?"
TOLERANCE = {"atol": 1e-4, "rtol": 0}


class Exported(NamedTuple):
    """A model, its processor, its checkpoint in half precision, and the folder of its files."""

    model: object
    processor: object
    checkpoint: str
    out: str

    def files(self) -> OnnxLlaso:
        return OnnxLlaso(self.out, threads=1)


@pytest.fixture(scope="module", params=SETTINGS)
def exported(request, tmp_path_factory):
    """A model that the command has exported."""
    model, processor = family_llaso(request.param, **SETTINGS[request.param])
    if processor.audio_token_id < model.config.text_config.vocab_size:
        raise_placeholder(model, processor, QUESTION, tone(1.0))
    model = model.bfloat16()
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint, out = str(folder / "model"), str(folder / "onnx")
    for part in (model, processor):
        part.save_pretrained(checkpoint)
    assert main(["export", "onnx", checkpoint, out]) == 0
    opened = LlasoForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    opened.generation_config = model.generation_config
    return Exported(opened, processor, checkpoint, out)


# ---- Answers ----


@pytest.mark.parametrize("seconds", [[0.02], [1.3], [36.2], [3.0, 0.7], [0.5, 31.0, 2.0]])
def test_answers_and_logits_are_the_models(seconds, exported):
    """One graph for any number of windows, any length, the prompt and each step after it."""
    clips = [tone(length, 200 + 100 * place) for place, length in enumerate(seconds)]
    conversation = question("What is said?", len(clips))
    inputs = ask(exported.processor, conversation, clips)
    ours = exported.model.generate(
        **inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    files = exported.files()
    steps = list(files.steps(files.processor(conversation, clips), 6))
    ids = ours.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert [number for number, _ in steps] == ids
    for (_, theirs), logits in zip(steps, ours.logits, strict=True):
        np.testing.assert_allclose(theirs, logits[0].numpy(), **TOLERANCE)
    said = files.generate("What is said?", clips, 6)
    assert said == exported.processor.decode(ids, skip_special_tokens=True)


def test_text_alone_is_answered(exported):
    conversation = [{"role": "user", "content": "What is heard?"}]
    inputs = ask(exported.processor, conversation, [])
    ours = exported.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert exported.files().generate(conversation, max_new_tokens=4) == exported.processor.decode(
        ours, skip_special_tokens=True
    )


def test_answers_end_at_an_end_token_and_at_the_context(exported):
    """At a token that ends an answer, and where the context ends; a prompt that fills it is refused."""
    files = exported.files()
    inputs = files.processor(question("What is said?"), [tone(1.0)])
    first, _ = next(files.steps(inputs, 1))
    files.description["eos_token_ids"] = [first]
    assert [number for number, _ in files.steps(inputs, 9)] == [first]
    assert files.generate("What is said?", [tone(1.0)]) == ""
    files.description["eos_token_ids"] = []
    files.description["max_tokens"] = inputs.input_ids.shape[1] + 2
    assert len(list(files.steps(inputs, 9))) == 2
    files.description["max_tokens"] = inputs.input_ids.shape[1]
    with pytest.raises(ValueError, match="reads at most"):
        next(files.steps(inputs, 9))


@pytest.mark.parametrize("exported", ["qwen2"], indirect=True)
def test_the_placeholder_is_never_written(exported):
    """With a row that would win, it is masked here and there."""
    files = exported.files()
    number, logits = next(files.steps(files.processor(question(QUESTION), [tone(1.0)]), 1))
    placeholder = exported.processor.audio_token_id
    assert number != placeholder and logits[placeholder] == np.finfo(np.float32).min
    state = exported.model.model(**ask(exported.processor, question(QUESTION), [tone(1.0)])).last_hidden_state[0, -1]
    assert int((exported.model.lm_head.weight @ state).argmax()) == placeholder


def test_the_decoder_takes_batches_padded_on_the_left(exported):
    """Two rows of unequal length, a prompt and a step: each row as if it were alone."""
    session = exported.files().sessions["decoder"]
    hidden = exported.model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, length, hidden, generator=generator) for length in (9, 6)]
    steps = torch.randn(2, 1, hidden, generator=generator)
    embeds = torch.cat([rows[0], torch.nn.functional.pad(rows[1], (0, 0, 3, 0))])
    mask = np.ones((2, 10), dtype=np.int64)
    mask[1, :3] = 0
    places = np.maximum(mask.cumsum(1) - 1, 0)
    names = [one.name for one in session.get_inputs()]
    _, heads, _, width = next(one.shape for one in session.get_inputs() if one.name.startswith("past"))
    past = [np.zeros((2, heads, 0, width), np.float32)] * (len(names) - 3)
    prompt = session.run(None, dict(zip(names, [embeds.numpy(), mask[:, :9], places[:, :9], *past], strict=True)))
    after = session.run(None, dict(zip(names, [steps.numpy(), mask, places[:, 9:], *prompt[1:]], strict=True)))
    for row, alone in enumerate(rows):
        with torch.no_grad():
            whole = exported.model(inputs_embeds=torch.cat([alone, steps[row : row + 1]], dim=1)).logits[0]
        np.testing.assert_allclose(prompt[0][row, 0], whole[-2].numpy(), **TOLERANCE)
        np.testing.assert_allclose(after[0][row, 0], whole[-1].numpy(), **TOLERANCE)


def test_the_files_run_without_torch_and_transformers(exported, tmp_path):
    """In a process of its own, from a file, by the class and by the words of docs/export.md."""
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, tone(1.0), 16_000)
    program = (
        "import sys; from llaso.exporting.onnx_model import OnnxLlaso; "
        f"print(ascii(OnnxLlaso({exported.out!r}).transcribe({str(clip)!r}, max_new_tokens=5))); "
        "print(sorted({'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    said, modules = done.stdout.strip().split("\n")
    assert modules == "[]"
    inputs = exported.processor.apply_transcription_request(str(clip))
    ours = exported.model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert said == ascii(exported.processor.decode(ours, skip_special_tokens=True))


def test_the_description_says_what_the_graphs_take(exported):
    description = json.loads(Path(exported.out, "llaso_onnx.json").read_text(encoding="utf-8"))
    sessions = exported.files().sessions
    assert description["parts"].keys() == sessions.keys() == {"audio", "embed", "decoder"}
    for name, session in sessions.items():
        for kind, tensors in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            shapes = description["parts"][name][kind]
            assert list(shapes) == [tensor.name for tensor in tensors]
            for tensor in tensors:
                fixed = [size for size in tensor.shape if isinstance(size, int)]
                assert [size for size in shapes[tensor.name] if isinstance(size, int)] == fixed
    hidden = exported.model.config.text_config.hidden_size
    assert description["parts"]["decoder"]["inputs"]["inputs_embeds"] == ["batch", "tokens", hidden]
    assert description["parts"]["decoder"]["inputs"]["attention_mask"] == ["batch", "past + tokens"]
    assert description["parts"]["decoder"]["inputs"]["past_key_values.0.value"][2] == "past"
    if exported.processor.audio_padding == "trim":
        assert description["parts"]["audio"]["outputs"]["audio_embeds"] == ["audio_tokens", hidden]
    assert description["text"]["placeholder_id"] == exported.processor.audio_token_id
    assert description["eos_token_ids"] == exported.model.generation_config.eos_token_id


# ---- The other families, and torch.export ----


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_the_decoder_of_other_families(family, tmp_path):
    model, _ = family_llaso(family, text={"num_hidden_layers": 1})
    part = network_parts(model)["decoder"]
    write_part(part, tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"))
    prompt, step = decoded(part, lambda *given: session.run(None, dict(zip(part.inputs, given, strict=True))))
    assert_close_to_model(model, prompt, step)


@pytest.mark.parametrize("padding", ["trim", "full"])
def test_torch_export_alone_gives_the_models_numbers(padding):
    """What `torch.export` traces, at other lengths than it was traced with."""
    model, processor = family_llaso("smollm2", audio_padding=padding, projector_stride=7)
    parts = network_parts(model)
    audio = parts["audio"].exported().module()
    inputs = ask(processor, question("What is said?", 2), [tone(0.41), tone(1.0)])
    given = [inputs["input_features"]] + [inputs["input_features_mask"]] * (padding == "trim")
    with torch.no_grad():
        ours = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        torch.testing.assert_close(audio(*given), ours, atol=1e-5, rtol=0)
        ids = inputs["input_ids"].repeat(3, 1)
        theirs = parts["embed"].exported().module()(ids)
        text = ids[0] != processor.audio_token_id
        torch.testing.assert_close(theirs[:, text], model.get_input_embeddings()(ids[:, text]), atol=0, rtol=0)
    decoder = parts["decoder"].exported().module()

    def run(embeds, mask, places, *past):
        pairs = [tuple(map(torch.from_numpy, past[place : place + 2])) for place in range(0, len(past), 2)]
        with torch.no_grad():
            logits, kept = decoder(*map(torch.from_numpy, (embeds, mask, places)), pairs)
        return [logits.numpy(), *(tensor.numpy() for pair in kept for tensor in pair)]

    assert_close_to_model(model, *decoded(parts["decoder"], run))


def decoded(part, run) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a prompt of seven tokens and of a step after it; `run` takes and gives arrays in the part's order."""
    embeds = example(part.inputs["inputs_embeds"][-1])
    past = [
        np.zeros((1, shape[1], 0, shape[3]), np.float32)
        for name, shape in part.inputs.items()
        if name.startswith("past_key_values")
    ]
    places = np.arange(8)[None]
    prompt = run(embeds[:, :7], np.ones((1, 7), dtype=np.int64), places[:, :7], *past)
    step = run(embeds[:, 7:], np.ones((1, 8), dtype=np.int64), places[:, 7:], *prompt[1:])
    return prompt[0], step[0]


def example(hidden: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 8, hidden)).astype(np.float32)


def assert_close_to_model(model, prompt: np.ndarray, step: np.ndarray) -> None:
    """Hold what `decoded` gave against the model's logits."""
    with torch.no_grad():
        whole = model(inputs_embeds=torch.from_numpy(example(model.config.text_config.hidden_size))).logits.numpy()
    np.testing.assert_allclose(prompt[0, 0], whole[0, 6], **TOLERANCE)
    np.testing.assert_allclose(step[0, 0], whole[0, 7], **TOLERANCE)


# ---- What is refused, and the commands ----


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        ("llama3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "'linear'"),
        ("mistral", {"sliding_window": 128}, '"sliding_window": null'),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, "sliding"),
    ],
)
def test_models_that_were_never_compared_are_refused(family, text, message, tmp_path):
    model, processor = family_llaso(family, text=text)
    with pytest.raises(ValueError, match=message):
        export_onnx(model, processor, tmp_path / "onnx")
    model.config.text_config.model_type = "gemma2"
    with pytest.raises(ValueError, match="'gemma2'; the export was tried with llama, mistral, qwen2, qwen3"):
        export_onnx(model, processor, tmp_path / "onnx")
    processor.projector_stride = 3
    with pytest.raises(ValueError, match="load both from one checkpoint"):
        export_onnx(model, processor, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_the_check_tells_equal_from_different(exported, tmp_path, capsys):
    clips = [str(tmp_path / name) for name in ("short.wav", "long.wav")]
    for clip, seconds in zip(clips, (0.8, 31.0), strict=True):
        soundfile.write(clip, tone(seconds), 16_000)
    check = ["export", "check", exported.out, *clips, "--max-new-tokens", "4"]
    assert main(check) == 0
    said = capsys.readouterr().out
    assert said.count("equal token ids") == len(FORMS)
    assert f"2 of 2 clips with equal ids and logits within {CLOSE:g}" in said
    family = "llama3" if exported.processor.audio_padding == "trim" else "qwen2"
    other, _ = family_llaso(family, seed=1, **SETTINGS[family])
    for part in (other, exported.processor):
        part.save_pretrained(tmp_path / "other")
    assert main([*check, "--model", str(tmp_path / "other")]) == 1
    assert "0 of 2 clips" in capsys.readouterr().out


def test_nothing_is_written_over_and_missing_files_are_named(exported, tmp_path, capsys):
    command = ["export", "onnx", exported.checkpoint]
    assert main([*command, exported.out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, exported.checkpoint, "--overwrite"]) == 2
    assert "holds no export" in capsys.readouterr().err
    with pytest.raises(ValueError, match="llaso_onnx.json is missing"):
        OnnxLlaso(tmp_path)
    assert main(["export", "check", str(tmp_path / "none"), "clip.wav"]) == 2
    assert "none: there is no such folder" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(exported.out, damaged)
    for name in ("decoder.onnx", "llaso_onnx.json", "tokenizer.json"):
        whole = (damaged / name).read_bytes()
        (damaged / name).write_bytes(b"{")
        if name != "tokenizer.json":
            with pytest.raises(ValueError, match=rf"{name}: "):
                OnnxLlaso(damaged)
        (damaged / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing; `llaso export onnx` writes it"):
            OnnxLlaso(damaged)
        (damaged / name).write_bytes(whole)
    with pytest.raises(ValueError, match="pass a list of recordings, even for one"):
        OnnxLlaso(damaged).generate("What is said?", "clip.wav")


def test_the_blocks_of_the_page_run(exported, tmp_path, monkeypatch, capsys):
    """docs/export.md, by a reader whose model was exported by the page's command, which the fixture gives."""
    monkeypatch.chdir(tmp_path)
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/llaso-tiny").symlink_to(exported.checkpoint)
    Path("runs/onnx").symlink_to(exported.out)
    soundfile.write("runs/quickstart/held-out.flac", tone(1.0), 16_000)
    page = [block.code for block in blocks(ROOT / "docs/export.md")]
    (shell,) = [code for code in page if "llaso export onnx" in code]
    export, check = commands(shell)
    assert export == "llaso export onnx runs/quickstart/llaso-tiny runs/onnx"
    assert main([*shlex.split(check)[1:], "--max-new-tokens", "4"]) == 0
    (code,) = [code for code in page if "OnnxLlaso(" in code]
    capsys.readouterr()
    exec(compile(code.replace('.flac")', '.flac", 4)').replace('.flac"])', '.flac"], 4)'), "export.md", "exec"), {})
    assert len(capsys.readouterr().out.split("\n")) >= 3
