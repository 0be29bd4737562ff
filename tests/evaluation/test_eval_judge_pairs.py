"""Answers judged in pairs, and a judge's biases: judges whose biases are known are measured to have just those."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_eval import chat_server

from eval_suite.judge_bias import ANSWERS, MEASURES, load_probes, measure_bias
from eval_suite.judge_models import JudgePrompt
from eval_suite.judge_pairs import Choice, judge_pairs, parse_choice
from llaso.cli import main

TICKET = "0123456789ab"


def write_answers(folder: Path, answers: list[str | None], clips: int | None = None) -> Path:
    """A predictions folder with one file; None is a failed generation."""
    folder.mkdir(parents=True)
    lines = []
    for number, answer in enumerate(answers):
        row = {"id": f"q{number}", "file": "talk_AQA", "task": "AQA", "modality": "text_audio", "source": "talk"}
        row |= {"instruction": f"What is {number} plus one?", "reference": str(number + 1), "choices": []}
        row |= {"prediction": answer, "error": None if answer is not None else "out of memory"}
        row |= {"cluster": f"clip {number % (clips or len(answers))}"}
        lines.append(json.dumps(row) + "\n")
    (folder / "talk_AQA.jsonl").write_text("".join(lines))
    return folder


def case_of(body: dict) -> tuple[str, dict]:
    """The ticket and the case in a judge's request."""
    ticket, case = re.fullmatch(r"Ticket: (\w+)\nCase: (.*)\n", body["messages"][1]["content"]).groups()
    return ticket, json.loads(case)


def server_of(pair: Callable[[dict], str], score: Callable[[dict], int] = lambda case: 3) -> Callable:
    """A server that replies as `pair` and `score` say about a case."""

    def answer(body: dict) -> tuple[int, object]:
        ticket, case = case_of(body)
        said = {"better": pair(case)} if "first" in case else {"score": score(case)}
        usage = {"prompt_tokens": 200, "completion_tokens": 20}
        text = json.dumps({"ticket": ticket, "explanation": "so it is", **said})
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}

    return answer


PROBES = load_probes()[0]
WORTH = {"good": 1, "same": 1, "padded": 1, "wrong": 0, "claiming": 0}
WORTH_OF = {case[kind]: WORTH[kind] for case in PROBES for kind in ANSWERS}


def worth(case: dict, place: str) -> int:
    """How good an answer of the standard set is."""
    return WORTH_OF[case[place]]


def fair(case: dict) -> str:
    first, second = worth(case, "first"), worth(case, "second")
    return "tie" if first == second else "first" if first > second else "second"


def longer(case: dict) -> str:
    first, second = len(case["first"]), len(case["second"])
    return "tie" if first == second else "first" if first > second else "second"


# Pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["first", json.dumps({"ticket": TICKET, "explanation": "", "better": "1"}),
     json.dumps({"ticket": TICKET, "explanation": "", "better": ["first"]}),
     json.dumps({"ticket": "x", "explanation": "", "better": "first"}),
     json.dumps({"ticket": TICKET, "explanation": "", "score": 5})],
)  # fmt: skip
def test_a_reply_that_chooses_nothing_is_no_judgement(text):
    assert parse_choice(text, TICKET).better is None and parse_choice(text, TICKET).error
    proper = json.dumps({"ticket": TICKET, "explanation": "so", "better": "tie"})
    assert parse_choice(proper, TICKET) == Choice("tie", "so")


def right(case: dict) -> str:
    first, second = case["first"] == case["reference"], case["second"] == case["reference"]
    return "tie" if first == second else "first" if first else "second"


def test_a_win_rate_by_command(tmp_path, capsys):
    """Six rows: two won, one lost, one tied by the judge, one equal, one failed on the other side."""
    ours = write_answers(tmp_path / "ours", ["1", "2", "x", "x", "same", "y"])
    theirs = write_answers(tmp_path / "theirs", ["x", "y", "3", "y", "same ", None])
    with chat_server(server_of(right)) as (url, received):
        command = ["eval", "judge", str(ours), "--against", str(theirs), "--judge-model", "j", "--judge-endpoint", url]
        assert main(command) == 0
        assert len(received) == 8  # four pairs in both orders
        first = (ours / "pairs" / "theirs" / "pairs.json").read_bytes()
        assert main(command) == 0
        assert len(received) == 8 and (ours / "pairs" / "theirs" / "pairs.json").read_bytes() == first
    said = capsys.readouterr().out
    assert "6 of 6 pairs judged by j, 2 of them without asking, 0 missing" in said
    assert "ours against theirs: win rate 0.667 [" in said
    assert "8 replies in all: 1,600 tokens read and 160 written" in said
    made = json.loads(first)
    assert (made["won"], made["tied"], made["lost"], made["contradicted"]) == (3, 2, 1, 0)
    assert made["win_rate"]["value"] == pytest.approx((3 + 2 * 0.5) / 6)
    assert made["win_rate"]["low"] < made["win_rate"]["value"] < made["win_rate"]["high"]
    assert made["first_preferred"]["value"] == 0.5
    rows = [json.loads(line) for line in (ours / "pairs" / "theirs" / "pairs.jsonl").read_text().splitlines()]
    assert [row["points"] for row in rows] == [1, 1, 0, 0.5, 0.5, 1]
    assert [one["better"] for one in rows[0]["orders"]] == ["first", "second"] and "orders" not in rows[4]
    mirrored = judge_pairs(theirs, ours, "j", endpoint=url, max_calls=1, out=ours / "pairs" / "theirs", progress=False)
    assert mirrored["asked"] == 0  # the same questions: everything was kept
    assert mirrored["win_rate"]["value"] == pytest.approx(1 - made["win_rate"]["value"])


def test_a_judge_that_takes_the_first_gives_no_system_an_advantage(tmp_path):
    ours = write_answers(tmp_path / "ours", [f"a{number}" for number in range(20)], clips=10)
    theirs = write_answers(tmp_path / "theirs", [f"b{number}" for number in range(20)], clips=10)
    with chat_server(server_of(lambda case: "first")) as (url, _):
        made = judge_pairs(ours, theirs, "j", endpoint=url, progress=False)
    assert made["win_rate"] == {"value": 0.5, "n": 20, "low": 0.5, "high": 0.5}
    assert (made["contradicted"], made["first_preferred"]["value"]) == (20, 1.0)


def test_a_budget_judges_whole_pairs(tmp_path):
    ours = write_answers(tmp_path / "ours", [f"a{number}" for number in range(6)])
    theirs = write_answers(tmp_path / "theirs", [f"longer {number}" for number in range(6)])
    with chat_server(server_of(longer)) as (url, received):
        made = judge_pairs(ours, theirs, "j", endpoint=url, max_calls=5, progress=False)
        assert (made["asked"], made["judged"], made["missing"]) == (4, 2, 4)
        assert made["longer_preferred"]["value"] == 1.0 and made["win_rate"]["value"] == 0.0
        made = judge_pairs(ours, theirs, "j", endpoint=url, progress=False)
        assert (made["asked"], made["judged"], len(received)) == (8, 6, 12)


def test_pairs_that_cannot_be_judged_are_named(tmp_path):
    ours, theirs = write_answers(tmp_path / "ours", ["1"]), write_answers(tmp_path / "theirs", ["1", "2"])
    with pytest.raises(ValueError, match="share no row to judge"):
        judge_pairs(ours, theirs, "j", endpoint="http://localhost:9", tasks=["SCR"], progress=False)
    with pytest.raises(ValueError, match="no judge prompt 'judge_v1'; there are judge_pairs_v1"):
        judge_pairs(ours, theirs, "j", endpoint="http://localhost:9", prompt="judge_v1", progress=False)
    text = (theirs / "talk_AQA.jsonl").read_text()
    (theirs / "talk_AQA.jsonl").write_text(text.replace("0 plus", "0 minus"))
    with pytest.raises(ValueError, match="the same id, but another instruction or reference"):
        judge_pairs(ours, theirs, "j", endpoint="http://localhost:9", progress=False)


# Biases --------------------------------------------------------------------------------------------------------


def measured(tmp_path: Path, pair: Callable, score: Callable = lambda case: 3, **options) -> dict:
    with chat_server(server_of(pair, score)) as (url, _):
        return measure_bias("j", tmp_path / "bias", endpoint=url, progress=False, **options)


def values(made: dict) -> dict[str, float]:
    return {name: one["value"] for name, one in made["measures"].items()}


def test_a_fair_judge_has_no_bias(tmp_path):
    made = measured(tmp_path, fair, lambda case: 5 if worth(case, "answer") else 1)
    zero = {"position": 0, "length_pairs": 0, "length_score": 0, "claim_score": 0}
    assert values(made) == zero | {"right_pairs": 1, "right_score": 1, "same_choice": 1}
    assert made["missing"] == 0 and made["measures"].keys() == MEASURES.keys()
    assert made["usage"] == {"replies": 200, "prompt_tokens": 40_000, "tokens": 4_000, "uncounted": 0}


def test_a_judge_that_takes_the_first(tmp_path):
    made = values(measured(tmp_path, lambda case: "first"))
    assert (made["position"], made["length_pairs"], made["right_pairs"], made["same_choice"]) == (1, 0, 0.5, 0)
    made = values(measured(tmp_path / "other", lambda case: "second"))
    assert (made["position"], made["length_pairs"], made["right_pairs"], made["same_choice"]) == (-1, 0, 0.5, 0)


def test_a_judge_that_takes_the_longer(tmp_path):
    made = values(measured(tmp_path, longer, lambda case: 4 if len(case["answer"]) > 100 else 2))
    assert (made["length_pairs"], made["length_score"], made["position"]) == (1, 2, 0)
    assert made["right_score"] == 0.5


def test_a_judge_that_believes_a_claim(tmp_path):
    claims = {case["claiming"] for case in PROBES}
    made = values(measured(tmp_path, fair, lambda case: 5 if case["answer"] in claims or worth(case, "answer") else 1))
    assert (made["claim_score"], made["length_score"], made["right_score"]) == (4, 0, 1)


def test_the_bias_of_a_noisy_judge_lies_in_its_interval(tmp_path):
    """It takes the first answer three times in four, whatever the answers say: a position bias of one half."""

    def noisy(case: dict) -> str:
        luck = random.Random(hashlib.sha256(json.dumps(case).encode()).digest())
        return "first" if luck.random() < 0.75 else "second"

    made = measured(tmp_path, noisy)["measures"]
    assert made["position"]["low"] <= 0.5 <= made["position"]["high"] and made["position"]["low"] > 0
    assert made["length_pairs"]["low"] <= 0 <= made["length_pairs"]["high"]
    assert made["right_pairs"]["low"] <= 0.5 <= made["right_pairs"]["high"]


def test_a_judge_that_replies_nonsense_has_no_measures(tmp_path, capsys):
    with chat_server(lambda body: (200, "I would say the first.")) as (url, received):
        command = ["eval", "judge-bias", "--judge-model", "j", "--judge-endpoint", url, "--out", str(tmp_path / "b")]
        assert main([*command, "--max-calls", "20"]) == 1
        assert len(received) == 20
    said = capsys.readouterr().out
    assert "position" in said and "the reply is not one JSON object" in said
    assert all(
        one["value"] is None for one in json.loads((tmp_path / "b" / "bias.json").read_text())["measures"].values()
    )


def test_the_standard_set_is_what_its_measures_need():
    """Equal answers are of equal length, padded ones much longer, and wrong ones no longer than right ones."""
    cases, _ = load_probes()
    assert len(cases) == 20 and len({case["instruction"] for case in cases}) == 20
    for case in cases:
        assert case.keys() == {"instruction", "reference", *ANSWERS}
        good = len(case["good"])
        assert 0.75 < len(case["same"]) / good < 1.34 and case["same"] != case["good"]
        assert len(case["padded"]) > 3 * good
        assert len(case["wrong"]) < 1.5 * good
        assert case["claiming"].startswith(case["wrong"])
    signs = [len(case["same"]) - len(case["good"]) for case in cases]
    assert abs(sum(signs)) <= 2 * len(cases)


def test_the_prompts_are_the_frozen_ones():
    """Results of two prompts do not compare: a change needs a new file with a new number."""
    assert (
        JudgePrompt.load("judge_pairs_v1", "judge_pairs").sha256
        == "fab5970f9fd13286789d26f5cac1c8a4a575406027dbc2bc171bfecdb1feb8f8"
    )
    assert load_probes()[1] == "3cbaef3bfbea90b7a77206ccc1ab138b87f16e3ef064702877b86e0b4f1a0bdb"
