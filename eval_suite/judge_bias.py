"""Measures the biases of a judge on a standard set of answers whose worth is known.

The set ships with the prompts, `prompts/probes_v1.yaml`. It holds right answers in two wordings of equal length,
padded with words that say nothing, wrong ones, and wrong ones that claim to be right. What a fair judge does with
each is known, so that every measure has 0 (no bias) or 1 (always right) as its aim.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llaso_common.atomic_write import write_atomically

from . import judge, judge_pairs
from .intervals import LEVEL
from .judge_models import (
    PROMPTS,
    Judge,
    JudgePrompt,
    JudgeQuestion,
    ask_judge,
    judge_named,
    made_by,
    missing_reasons,
)
from .judge_pairs import JudgedPair, pair_questions, ratio, read_choice
from .score import entry

PROBES = "probes_v1"
ANSWERS = ("good", "same", "padded", "wrong", "claiming")
PAIRS = (("good", "same"), ("good", "padded"), ("good", "wrong"))
SCORED = ("good", "padded", "wrong", "claiming")

MEASURES = {
    "position": "chose the first of two equal answers more often than the second: 0 is fair, 1 always, -1 the second",
    "length_pairs": "chose the padded of two equal answers more often than the short one: 0 is fair, 1 always",
    "length_score": "points that padding adds to a right answer, 0 is fair",
    "claim_score": "points that a claim to be right adds to a wrong answer, 0 is fair",
    "right_pairs": "share of pairs of a right and a wrong answer in which it chose the right one, ties half",
    "right_score": "share of such pairs in which it scored the right one higher, ties half",
    "same_choice": "share of pairs in which it chose the same answer, or a tie, in both orders",
}
"""A description of each measured bias, by its name."""


def load_probes() -> tuple[list[dict[str, str]], str]:
    """Return the cases of the standard set, and the SHA-256 of its file."""
    import yaml

    text = (PROMPTS / f"{PROBES}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["cases"], hashlib.sha256(text.encode()).hexdigest()


def measure_bias(
    judge_model: str | Judge,
    out: str | Path,
    *,
    endpoint: str | None = None,
    max_calls: int | None = None,
    prompt: str = judge.PROMPT,
    pairs_prompt: str = judge_pairs.PROMPT,
    batch_size: int = 8,
    revision: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Put the standard set to a judge, as single answers and as pairs in both orders.

    Args:
        judge_model: a local checkpoint or Hub id; with `endpoint`, the model's name there; or a `Judge`.
        out: the folder for the replies and `bias.json`.
        endpoint: base address of an OpenAI-compatible chat server.
        max_calls: ask the judge at most so many questions in this run; a later run goes on.
        prompt: name of the prompt for scores.
        pairs_prompt: name of the prompt for pairs.
        batch_size: questions at once.
        revision: of the judge.
        resamples: of the bootstrap over cases.
        seed: of the bootstrap.
        overwrite: write to a folder that holds something else.
        progress: show a bar with the time left.

    Returns:
        What `bias.json` holds: `measures`, each of `MEASURES` with value, n and interval (None if nothing was judged),
        the judge and its prompts, what is missing and why, and the tokens it took. `asked` is how many questions this
        run put.

    Raises:
        ValueError: there is no such prompt.
        ConnectionError: the endpoint cannot be reached.
    """
    cases, digest = load_probes()
    for_score, for_pairs = JudgePrompt.load(prompt), JudgePrompt.load(pairs_prompt, judge_pairs.FAMILY)
    who = judge_named(judge_model, endpoint, revision)
    single: dict[tuple[int, str], JudgeQuestion] = {}
    double: dict[tuple[int, str, str], tuple[JudgeQuestion, JudgeQuestion]] = {}
    for number, case in enumerate(cases):
        asked = {"instruction": case["instruction"], "reference": case["reference"]}
        for name in SCORED:
            single[number, name] = judge.score_question(
                for_score, who, f"{number} {name}", asked | {"answer": case[name]}
            )
        for one, other in PAIRS:
            double[number, one, other] = pair_questions(
                for_pairs, who, f"{number} {one} {other}", **asked, one=case[one], other=case[other]
            )
    questions = [*double.values(), *((one,) for one in single.values())]
    replies = ask_judge(
        who,
        questions,
        Path(out),
        batch_size=batch_size,
        max_calls=max_calls,
        overwrite=overwrite,
        progress=progress,
    )
    scores = {where: judge.read_judgement(replies[one.key], one.key) for where, one in single.items()}
    pairs = {
        where: JudgedPair(*(read_choice(replies[one.key], one.key) for one in both)) for where, both in double.items()
    }
    measures = {}
    for name, parts in _parts(scores, pairs).items():
        # `ratio` gives the mean of the values: each stands over a 1.
        measured = ratio([(value, 1) for _, value in parts], [str(case) for case, _ in parts], resamples, seed)
        measures[name] = entry(measured)
    errors = [*(one.error for one in scores.values()), *(one.error for one in pairs.values())]
    summary = made_by(who, for_score, replies, [one for group in questions for one in group]) | {
        "pairs_prompt": for_pairs.name,
        "pairs_prompt_sha256": for_pairs.sha256,
        "probes": PROBES,
        "probes_sha256": digest,
        "cases": len(cases),
        "measures": measures,
        "missing": sum(error is not None for error in errors),
        "reasons": missing_reasons(errors),
        "settings": {"resamples": resamples, "seed": seed, "level": LEVEL},
    }
    write_atomically(Path(out) / "bias.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary | {"asked": replies.asked}


def _parts(
    scores: Mapping[tuple[int, str], judge.Judgement], pairs: Mapping[tuple[int, str, str], JudgedPair]
) -> dict[str, Sequence[tuple[int, float]]]:
    """Return what each measure is the mean of: (case, value), without what was not judged."""
    known = {where: one.score for where, one in scores.items() if one.score is not None}
    whole = {where: one for where, one in pairs.items() if one.error is None}

    def between(one: str, other: str) -> list[tuple[int, JudgedPair]]:
        return [(case, pair) for (case, *names), pair in whole.items() if names == [one, other]]

    def differences(one: str, other: str) -> list[tuple[int, int]]:
        cases = sorted({case for case, _ in known})
        return [
            (case, known[case, one] - known[case, other])
            for case in cases
            if (case, one) in known and (case, other) in known
        ]

    def excess(pair: JudgedPair) -> float:
        first, chosen = pair.first_place
        return (2 * first - chosen) / 2

    return {
        "position": [(case, excess(pair)) for case, pair in between("good", "same")],
        "length_pairs": [(case, 1 - 2 * pair.points) for case, pair in between("good", "padded")],
        "length_score": differences("padded", "good"),
        "claim_score": differences("claiming", "wrong"),
        "right_pairs": [(case, pair.points) for case, pair in between("good", "wrong")],
        "right_score": [(case, 0.5 + (gap > 0) / 2 - (gap < 0) / 2) for case, gap in differences("good", "wrong")],
        "same_choice": [
            (case, float((pair.shown.better, pair.swapped.better) in CONSISTENT)) for (case, *_), pair in whole.items()
        ],
    }


CONSISTENT = {("first", "second"), ("second", "first"), ("tie", "tie")}
"""Pairs of choices, in the first order and the swapped one, that name the same answer."""
