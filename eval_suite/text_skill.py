"""Text skill: a hundred short questions without audio, to see what training on speech left of a language model.

`measure` takes a model and a processor, and gives for each question which of four answers the model finds likeliest.
A chance answer is right one time in four. `compare` tests two models on the same questions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).parent / "data" / "text_skill.json"
CHANCE = 0.25
Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class TextQuestion:
    """One question with its answer and three wrong ones; `kind` is fact, language, arithmetic and so on."""

    kind: str
    question: str
    answer: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The answer that a model found the likeliest, and how likely all four were.

    Args:
        question: what was asked.
        kind: of the question.
        answer: the right one.
        chosen: the likeliest.
        scores: by answer, the mean log-probability of its tokens.
    """

    question: str
    kind: str
    answer: str
    chosen: str
    scores: dict[str, float]

    @property
    def right(self) -> bool:
        return self.chosen == self.answer


def questions() -> list[TextQuestion]:
    """Read the hundred questions."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    return [TextQuestion(row["kind"], row["question"], row["answer"], tuple(row["others"])) for row in rows]


@torch.no_grad()
def measure(
    model: Any, processor: Any, asked: Sequence[TextQuestion] | None = None, batch_size: int = 8
) -> list[Chosen]:
    """Find the likeliest answer to each question, each asked in the processor's own prompt, without audio.

    Args:
        model: gives `logits` of `input_ids` and `attention_mask`; in `eval()`.
        processor: has `apply_chat_template`, which returns ids in a batch, and a `tokenizer`.
        asked: the questions; by default the hundred.
        batch_size: questions whose answers run together.
    """
    asked = questions() if asked is None else asked
    found: list[Chosen] = []
    for start in range(0, len(asked), batch_size):
        some = asked[start : start + batch_size]
        scores = iter(_scores(model, processor, some))
        for question in some:
            by_answer = {answer: next(scores) for answer in (question.answer, *question.others)}
            chosen = max(by_answer, key=by_answer.__getitem__)
            found.append(Chosen(question.question, question.kind, question.answer, chosen, by_answer))
    return found


def _scores(model: Any, processor: Any, asked: Sequence[TextQuestion]) -> list[float]:
    """Return the mean log-probability of each answer's tokens, four answers a question, one question after another."""
    rows: list[tuple[list[int], list[int]]] = []
    for question in asked:
        turns = [{"role": "user", "content": question.question}]
        made = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        prompt = made["input_ids"][0].tolist()
        for answer in (question.answer, *question.others):
            rows.append((prompt, processor.tokenizer(answer, add_special_tokens=False)["input_ids"]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, learned = torch.zeros_like(ids), torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, (prompt, tokens) in enumerate(rows):
        whole = [*prompt, *tokens]
        ids[place, : len(whole)], mask[place, : len(whole)] = torch.tensor(whole), 1
        learned[place, len(prompt) : len(whole)] = True
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1]
    answers = learned[:, 1:].to(device)
    # Only the answers' positions go through the softmax: a vocabulary is wide.
    likelihoods = logits[answers].float().log_softmax(-1).gather(-1, ids[:, 1:].to(device)[answers][:, None])[:, 0]
    return [each.mean().item() for each in likelihoods.cpu().split([len(answer) for _, answer in rows])]


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    share, spread = right / count, Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def compare(before: Sequence[Chosen], after: Sequence[Chosen]) -> dict[str, float]:
    """Compare two models on the same questions.

    Returns:
        `difference` in accuracy, after minus before; `lost` and `gained`, questions; `p`, McNemar's exact two-sided
        test.

    Raises:
        ValueError: the questions are not the same.
    """
    if [each.question for each in before] != [each.question for each in after]:
        raise ValueError("the two models were asked different questions")
    pairs = list(zip(before, after, strict=True))
    lost = sum(one.right and not other.right for one, other in pairs)
    gained = sum(other.right and not one.right for one, other in pairs)
    tail = sum(math.comb(lost + gained, k) for k in range(min(lost, gained) + 1)) / 2 ** (lost + gained)
    return {"difference": (gained - lost) / len(pairs), "lost": lost, "gained": gained, "p": min(1.0, 2 * tail)}


def record(name: str, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Return what a model came to, as plain JSON: accuracy with its interval, by kind, and every answer."""
    right = sum(each.right for each in chosen)
    low, high = wilson(right, len(chosen))
    kinds = {
        kind: [each.right for each in chosen if each.kind == kind]
        for kind in dict.fromkeys(each.kind for each in chosen)
    }
    return {
        "model": name,
        "n": len(chosen),
        "accuracy": right / len(chosen),
        "low": low,
        "high": high,
        "chance": CHANCE,
        "kinds": {kind: {"n": len(found), "accuracy": sum(found) / len(found)} for kind, found in kinds.items()},
        "answers": [asdict(each) for each in chosen],
    }
