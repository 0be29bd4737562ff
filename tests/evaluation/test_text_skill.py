"""Text skill: the questions, the likeliest answer, the comparison of two models, and the command."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import torch
from scipy.stats import binomtest
from support.tiny_llaso import save_parts, tiny_llaso

from eval_suite.text_skill import Chosen, TextQuestion, compare, measure, questions, record, wilson
from llaso.cli import main

ASKED = [
    TextQuestion("fact", "What is the capital of France?", "Paris", ("Rome", "Oslo", "Bern")),
    TextQuestion("fact", "What do bees make?", "Honey", ("Milk", "Glass", "Wool or cloth")),
    TextQuestion("number", "How many days are in a week?", "Seven", ("Two", "Ten", "One hundred")),
]


def test_the_hundred_questions_are_sound():
    asked = questions()
    assert len(asked) == 100 == len({question.question for question in asked})
    for question in asked:
        answers = [question.answer, *question.others]
        assert len({answer.casefold() for answer in answers}) == 4, question
        assert question.answer.casefold() not in question.question.casefold().split(), question
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
    arithmetic = [question for question in asked if question.kind == "arithmetic"]
    for question in arithmetic:
        left, sign, right = re.fullmatch(r"What is (\d+) ([a-z ]+) (\d+)\?", question.question).groups()
        assert eval(f"{left} {signs[sign]} {right}") == int(question.answer)
    kinds = Counter(question.kind for question in asked)
    assert kinds["arithmetic"] == 15 and kinds["fact"] == 40 and min(kinds.values()) >= 3


@torch.no_grad()
def test_a_batch_gives_each_answers_own_likelihood():
    """Against the plain way: one prompt and answer at a time, summed token by token."""
    model, processor = tiny_llaso()
    for chosen, question in zip(measure(model, processor, ASKED, batch_size=2), ASKED, strict=True):
        turns = [{"role": "user", "content": question.question}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        wanted = {}
        for answer in (question.answer, *question.others):
            ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            whole = torch.cat([prompt["input_ids"][0], torch.tensor(ids)])
            likely = model(input_ids=whole[None]).logits[0].log_softmax(-1)
            start = len(prompt["input_ids"][0]) - 1
            wanted[answer] = sum(likely[start + k, token].item() for k, token in enumerate(ids)) / len(ids)
        assert chosen.scores == pytest.approx(wanted, abs=1e-4)
        assert chosen.chosen == max(wanted, key=wanted.get) and chosen.answer == question.answer


def test_a_model_that_learned_the_answers_chooses_them():
    model, processor = tiny_llaso()
    untrained = measure(model, processor, ASKED)
    rows = []
    for question in ASKED:
        turns = [{"role": "user", "content": question.question}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = torch.tensor(processor.tokenizer(question.answer, add_special_tokens=False)["input_ids"])
        rows.append((prompt["input_ids"][0], ids))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        for prompt, ids in rows:
            labels = torch.cat([torch.full_like(prompt, -100), ids])[None]
            loss = model(input_ids=torch.cat([prompt, ids])[None], labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = measure(model.eval(), processor, ASKED)
    assert all(each.right for each in trained) and not all(each.right for each in untrained)
    said = record("tiny", trained)
    assert said["accuracy"] == 1.0 and said["kinds"]["fact"] == {"n": 2, "accuracy": 1.0}


@pytest.mark.parametrize(("right", "count"), [(0, 100), (25, 100), (63, 100), (100, 100)])
def test_intervals_are_wilsons(right, count):
    wanted = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def answers(right: str) -> list[Chosen]:
    return [Chosen(f"q{n}", "fact", "a", "a" if mark == "1" else "b", {}) for n, mark in enumerate(right)]


@pytest.mark.parametrize(
    ("before", "after", "lost", "gained"),
    [("1111100000", "0000010000", 5, 1), ("1100", "1100", 0, 0), ("1111111111", "0000000000", 10, 0)],
)
def test_two_models_are_compared_by_mcnemar(before, after, lost, gained):
    found = compare(answers(before), answers(after))
    assert (found["lost"], found["gained"]) == (lost, gained)
    assert found["difference"] == pytest.approx((gained - lost) / len(before))
    wanted = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert found["p"] == pytest.approx(wanted)


def test_models_asked_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="different questions"):
        compare(answers("10"), answers("1"))


def test_the_command_measures_a_language_model_and_what_was_trained_from_it(tmp_path, capsys):
    encoder, llm = save_parts(tmp_path)
    assert main(["new", "--encoder", str(encoder), "--llm", str(llm), "--out", str(tmp_path / "new")]) == 0
    out = tmp_path / "skill.json"
    assert main(["eval", "text-skill", str(llm), str(tmp_path / "new"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "+0.00 (0 lost, 0 gained, p 1)" in said  # the projector is new, the language model is the same
    before, after = json.loads(out.read_text())
    assert before["n"] == 100 and before["accuracy"] == after["accuracy"]
    assert len(after["answers"]) == 100 and after["against_first"]["lost"] == 0
    assert main(["eval", "text-skill", str(llm), "--out", str(out)]) == 2  # nothing is overwritten unasked
    assert main(["eval", "text-skill", str(encoder)]) == 2
    assert "answers no questions" in capsys.readouterr().err
    assert main(["eval", "text-skill", str(tmp_path / "none")]) == 2
    assert "neither a model's folder here nor" in capsys.readouterr().err
