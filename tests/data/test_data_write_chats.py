"""`llaso data write-chats`: a model writes both sides, the same however often it is stopped."""

from __future__ import annotations

import json

import pytest
import torch
from support.tiny_training import save_backbones
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataset_scripts import write_chats as module
from dataset_scripts.chat_import import import_chats
from dataset_scripts.write_chats import write_chats
from llaso.cli import main

TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny chat model that likes to end its turn, so that most of what it writes is whole."""
    root = tmp_path_factory.mktemp("chat_model")
    _, folder = save_backbones(root)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    torch.manual_seed(0)
    head = torch.randn(model.config.vocab_size, model.config.hidden_size)
    head[:, 0] = 0
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    head[end] = torch.eye(1, model.config.hidden_size)  # its logit is the first value of the hidden state,
    model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 3  # which is always large
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 24)
    monkeypatch.setattr(module, "FEWEST_CHARACTERS", 2)


def test_chats_become_rows(llm, tmp_path, capsys):
    out = tmp_path / "chats.jsonl"
    assert main(["data", "write-chats", llm, "--chats", "30", "--out", str(out)]) == 0
    assert "30 chats; `llaso data import-chats`" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    prompts = [row["messages"][0]["content"] for row in rows]
    assert len(rows) == 30 == len(set(prompts))
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    texts = [turn["content"] for row in rows for turn in row["messages"]]
    assert all(text and text == text.strip() and "<|" not in text for text in texts)
    assert import_chats(str(out), tmp_path / "rows")["rows"] == 30


@pytest.mark.parametrize("torn", [0, 7])
def test_a_stopped_call_goes_on_to_the_same_chats(llm, tmp_path, torn):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    write_chats(llm, whole, 40)
    write_chats(llm, stopped, 25)
    content = stopped.read_bytes()
    assert whole.read_bytes().startswith(content)
    if torn:
        stopped.write_bytes(content[:-torn])  # killed in the middle of a line
    counts: list[int] = []
    total, there = write_chats(llm, stopped, 40, progress=lambda done, total: counts.append(done))
    assert total == 40 and 0 < there == counts[0] <= 25
    assert counts[-1] == 40
    assert stopped.read_bytes() == whole.read_bytes()
    assert write_chats(llm, stopped, 12) == (40, 40)  # there are enough: nothing is taken away
    assert stopped.read_bytes() == whole.read_bytes()
    with stopped.open("ab") as file:
        file.write(content.splitlines()[0][:60])
    assert write_chats(llm, stopped, 12) == (40, 40)
    assert stopped.read_bytes() == whole.read_bytes()  # but for a line without its end


def test_another_seed_gives_other_chats_and_the_random_state_is_left_alone(llm, tmp_path):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    for seed in (0, 1):
        write_chats(llm, tmp_path / f"{seed}.jsonl", 10, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    contents = [
        (tmp_path / f"{seed}.jsonl").read_text(encoding="utf-8").replace('"seed": 1', '"seed": 0') for seed in (0, 1)
    ]
    assert contents[0] != contents[1]


def test_a_file_of_something_else_is_left_alone(llm, tmp_path):
    out = tmp_path / "chats.jsonl"
    for content in ('{"messages": []}\n', "no JSON\n", "[1]\n", "mine", "{", '{"messages": [{"role": "user"'):
        out.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="not from this model and seed. Choose another file, or replace it"):
            write_chats(llm, out, 5)
        assert out.read_text(encoding="utf-8") == content
    with pytest.raises(ValueError, match="neither a language model's folder"):
        write_chats("missing", out, 5, overwrite=True)
    assert out.read_text(encoding="utf-8") == content
    write_chats(llm, out, 5, overwrite=True)
    with pytest.raises(ValueError, match="not from this model and seed"):
        write_chats(llm, out, 9, seed=1)
    lines = out.read_bytes().splitlines(keepends=True)
    strange = [
        b'{"messages": [], "batch": 1}\n',
        lines[0].replace(b'"batch": 0', b'"batch": "x"'),
        b"[" * 100_000 + b"\n",
    ]
    later = lines[0].replace(b'"batch": 0', b'"batch": 5')
    for content in (*(b"".join([*lines, one]) for one in strange), b"".join([later, *lines])):
        other = tmp_path / "other.jsonl"
        other.write_bytes(content)
        with pytest.raises(ValueError, match="not from this model and seed"):
            write_chats(llm, other, 9)
        assert other.read_bytes() == content


def test_a_file_that_import_chats_would_not_take_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(
        ValueError, match=r"chats\.txt is to hold chats as JSON lines; name a file that ends in \.jsonl"
    ):
        write_chats("no-model", tmp_path / "chats.txt", 3)
    assert not (tmp_path / "chats.txt").exists()


def test_models_that_cannot_chat_are_refused(llm, tmp_path, monkeypatch):
    out = tmp_path / "chats.jsonl"
    with pytest.raises(
        ValueError, match="missing: neither a language model's folder here nor one that can be fetched"
    ):
        write_chats(str(tmp_path / "missing"), out, 5)
    _, base = save_backbones(tmp_path)
    with pytest.raises(ValueError, match="no chat template; name a chat model"):
        write_chats(str(base), out, 5)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(base)
    with pytest.raises(ValueError, match="no token that ends a user's turn"):
        write_chats(str(base), out, 5)
    monkeypatch.setattr(module.ChatModel, "chats", lambda self, seed, batch: [])
    with pytest.raises(ValueError, match="480 attempts gave no new chat; try another --seed or a larger chat model"):
        write_chats(llm, out, 5)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two! Thr", "One. Two!"),
        ("none", ""),
        ("Done?", "Done?"),
        ("", ""),
        ("It is 3.5 m. Then 2.5", "It is 3.5 m."),
        ("One 3.5", ""),
        ("1. Mix the eggs", ""),
        ("1. Mix.\n2. Bake", "1. Mix."),
        ('He said "Yes." And', 'He said "Yes."'),
        ("你好。再", "你好。"),
    ],
)
def test_an_answer_that_is_too_long_ends_with_a_sentence(text, kept):
    assert module._sentences(text) == kept
