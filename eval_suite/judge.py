"""Has a language model grade open answers from 1 to 5, and writes its judgements beside them.

The judge sees instruction, reference and answer as JSON data and replies with one JSON object that repeats a ticket
from the prompt: a reply that is not that object is no judgement. Replies are kept by content, so that nothing is
paid for twice; what fails stays missing and is counted, never turned into a score.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm.auto import tqdm

from llaso_common.atomic_write import write_atomically

from . import readers
from .answer_records import Records, Reply
from .corpus import digest
from .endpoint import ChatEndpoint, RequestRefusedError
from .task_metrics import TASKS

logger = logging.getLogger(__name__)

PROMPTS = Path(__file__).parent / "prompts"
PROMPT = "judge_v1"
MAX_TOKENS = 400
LOWEST, HIGHEST = readers.JUDGE_SCALE


class Judgement(NamedTuple):
    """A score with its reason, or why there is none."""

    score: int | None
    explanation: str
    error: str | None = None


@dataclass(frozen=True)
class JudgePrompt:
    """A versioned prompt file."""

    name: str
    system: str
    user: str
    sha256: str

    @classmethod
    def load(cls, name: str = PROMPT) -> JudgePrompt:
        """Read `prompts/<name>.yaml`.

        Raises:
            ValueError: there is no prompt of this name.
        """
        import yaml

        path = PROMPTS / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in PROMPTS.glob("*.yaml")))
            raise ValueError(f"no judge prompt {name!r}; there are {known}")
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        return cls(name, content["system"], content["user"], hashlib.sha256(text.encode()).hexdigest())

    def messages(self, row: readers.AnsweredRow, ticket: str) -> list[dict[str, Any]]:
        """Return the conversation that asks for a judgement of one answer."""
        case = {"instruction": row.instruction, "reference": row.reference, "answer": row.prediction or ""}
        user = self.user.replace("{ticket}", ticket).replace("{case}", json.dumps(case, ensure_ascii=False))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def reply_schema(ticket: str) -> dict[str, Any]:
    """Return the JSON schema of a judge's reply, for servers that hold a model to one."""
    return {
        "type": "object",
        "properties": {
            "ticket": {"type": "string", "enum": [ticket]},
            "explanation": {"type": "string"},
            "score": {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))},
        },
        "required": ["ticket", "explanation", "score"],
        "additionalProperties": False,
    }


def parse_reply(reply: str, ticket: str) -> Judgement:
    """Read a judge's reply: one JSON object with the ticket, an explanation and a score, optionally fenced.

    Nothing is searched for in running text. A score quoted from the answer, a repeated key, a number outside the
    scale or a wrong ticket makes the reply no judgement.
    """
    text = reply.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") + 1 : -3].strip()
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return Judgement(None, "", "the reply is not one JSON object")
    if not isinstance(fields, dict) or set(fields) != {"ticket", "explanation", "score"}:
        return Judgement(None, "", "the reply is not an object of ticket, explanation and score")
    if fields["ticket"] != ticket:
        return Judgement(None, "", "the reply carries another ticket")
    score, explanation = fields["score"], fields["explanation"]
    if type(score) is not int or not LOWEST <= score <= HIGHEST or not isinstance(explanation, str):
        return Judgement(None, "", f"the score is no integer from {LOWEST} to {HIGHEST}")
    return Judgement(score, explanation)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


# Judges ----------------------------------------------------------------------------------------------------


class Judge(Protocol):
    """A language model that replies to conversations."""

    @property
    def name(self) -> str:
        """The model's name."""

    def revision(self) -> str:
        """Return what tells two states of one name apart."""

    def reply(self, conversations: Sequence[list[dict[str, Any]]], tickets: Sequence[str]) -> list[Reply]:
        """Return one reply a conversation, at temperature 0."""


class EndpointJudge:
    """A judge behind an OpenAI-compatible chat server, asked for output under a JSON schema if it can do that."""

    def __init__(self, endpoint: ChatEndpoint, revision: str = "served"):
        self._endpoint, self._revision = endpoint, revision
        self._takes_schema = True

    @property
    def name(self) -> str:
        return self._endpoint.model

    def revision(self) -> str:
        return self._revision

    def reply(self, conversations: Sequence[list[dict[str, Any]]], tickets: Sequence[str]) -> list[Reply]:
        with ThreadPoolExecutor(max_workers=len(conversations)) as pool:
            return list(pool.map(self._ask, conversations, tickets))

    def _ask(self, conversation: list[dict[str, Any]], ticket: str) -> Reply:
        parameters: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS}
        try:
            if self._takes_schema:
                schema = {"name": "judgement", "strict": True, "schema": reply_schema(ticket)}
                form = {"type": "json_schema", "json_schema": schema}
                try:
                    return Reply(self._endpoint.complete(conversation, response_format=form, **parameters))
                except RequestRefusedError as error:
                    if not any(word in str(error) for word in ("response_format", "json_schema")):
                        raise
                    logger.info("%s takes no JSON schema; the reply is only checked", self.name)
                    self._takes_schema = False
            return Reply(self._endpoint.complete(conversation, **parameters))
        except RequestRefusedError as error:
            return Reply("", str(error))


class LocalJudge:
    """A judge run here: any text model of transformers with a chat template."""

    def __init__(self, model: str, *, revision: str | None = None, dtype: str = "auto", device: str | None = None):
        self.name = model
        self._hub_revision, self._dtype, self._device = revision, dtype, device
        self._loaded: tuple[Any, Any] | None = None

    def revision(self) -> str:
        from .backends import checkpoint_revision

        return checkpoint_revision(self.name, revision=self._hub_revision)

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from .backends import own_device

        tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self._hub_revision, padding_side="left")
        if tokenizer.chat_template is None:
            raise ValueError(f"{self.name}: its tokenizer has no chat template, so it cannot be asked to judge")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(self.name, revision=self._hub_revision, dtype=self._dtype)
        return tokenizer, model.to(self._device or own_device(torch)).eval()

    def reply(self, conversations: Sequence[list[dict[str, Any]]], tickets: Sequence[str]) -> list[Reply]:
        self._loaded = self._loaded or self._load()
        try:
            return self._reply(conversations)
        except (RuntimeError, MemoryError) as error:  # as a rule out of memory: a smaller batch may do
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        if len(conversations) == 1:
            return [Reply("", reason)]
        middle = len(conversations) // 2
        return [
            *self.reply(conversations[:middle], tickets[:middle]),
            *self.reply(conversations[middle:], tickets[middle:]),
        ]

    def _reply(self, conversations: Sequence[list[dict[str, Any]]]) -> list[Reply]:
        import torch

        assert self._loaded is not None
        tokenizer, model = self._loaded
        inputs = tokenizer.apply_chat_template(
            list(conversations), add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, pad_token_id=tokenizer.pad_token_id, **greedy)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [Reply(text) for text in texts]


# Judging a folder ----------------------------------------------------------------------------------------------


def judge(
    predictions: str | Path,
    judge_model: str | Judge,
    *,
    endpoint: str | None = None,
    out: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    agree_with: str | Path | None = None,
    prompt: str = PROMPT,
    batch_size: int = 8,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge the open answers of a folder; scoring reads the judgements from `<predictions>/judge`.

    Args:
        predictions: a folder of answers, ours or released ones.
        judge_model: a local checkpoint or Hub id; with `endpoint`, the model's name there; or a `Judge`.
        endpoint: base address of an OpenAI-compatible chat server.
        out: the folder of the judgements; `<predictions>/judge` by default.
        tasks: which tasks; by default those whose answers only a judge can grade, or, with `agree_with`, every row
            that was judged there.
        limit: judge only so many rows, picked by a digest.
        agree_with: a folder of released judge texts (`gpt_result`) to compare with.
        prompt: name of the prompt file.
        batch_size: answers asked about at once.
        revision: of the judge.
        overwrite: write to a folder that holds something else.
        progress: show a bar with the time left.

    Returns:
        What `judge.json` holds: the judge and its prompt, how many rows, how many stayed missing and why; with
        `agree_with`, the agreement.

    Raises:
        ValueError: no such prompt or task, or there is nothing to judge.
        ConnectionError: the endpoint cannot be reached.
    """
    answers = readers.read(predictions)
    words, earlier = JudgePrompt.load(prompt), read_judgements(Path(agree_with)) if agree_with else {}
    rows = _rows_to_judge(answers, tasks, earlier, limit)
    who = _who(judge_model, endpoint, revision)
    made_by = [words.sha256, who.name, who.revision(), MAX_TOKENS]
    keys = {(row.file, row.id): digest(made_by, row.instruction, row.reference, row.prediction or "") for row in rows}
    folder = Path(out) if out else Path(predictions) / "judge"
    records = Records(folder, overwrite=overwrite)
    replies = records.read(keep_errors=False)
    pending: dict[str, readers.AnsweredRow] = {}
    for row in rows:
        if keys[row.file, row.id] not in replies:
            pending.setdefault(keys[row.file, row.id], row)
    try:
        with tqdm(total=len(pending), desc="judge", unit="answer", disable=not progress, file=sys.stderr) as bar:
            waiting = sorted(pending.items(), key=lambda item: (-len(item[1].prediction or ""), item[0]))
            for start in range(0, len(waiting), batch_size):
                batch = waiting[start : start + batch_size]
                conversations = [words.messages(row, _ticket(key)) for key, row in batch]
                given = who.reply(conversations, [_ticket(key) for key, _ in batch])
                records.append((key, row.id, reply) for (key, row), reply in zip(batch, given, strict=True))
                bar.update(len(batch))
    finally:
        records.close()
    replies = records.read()
    judged = {where: _judgement(replies[key], _ticket(key)) for where, key in keys.items()}
    summary = _summary(judged, who, words) | {"predictions": answers.system}
    if agree_with:
        pairs = [
            (earlier[where], one.score) for where, one in judged.items() if where in earlier and one.score is not None
        ]
        summary["agreement"] = agreement(pairs) | {"with": str(agree_with)}
    _write(folder, rows, judged, summary)
    return summary


def _who(judge_model: str | Judge, endpoint: str | None, revision: str | None) -> Judge:
    if not isinstance(judge_model, str):
        return judge_model
    if endpoint:
        return EndpointJudge(ChatEndpoint(endpoint, judge_model), revision or "served")
    return LocalJudge(judge_model, revision=revision)


def _ticket(key: str) -> str:
    """Return what a reply must repeat: it cannot be guessed from the answer and is the same on every run."""
    return digest("ticket", key)[:12]


def _judgement(reply: Reply, ticket: str) -> Judgement:
    return Judgement(None, "", reply.error) if reply.error is not None else parse_reply(reply.prediction, ticket)


def _rows_to_judge(
    answers: readers.SystemAnswers,
    tasks: Sequence[str] | None,
    earlier: Mapping[tuple[str, str], int],
    limit: int | None,
) -> list[readers.AnsweredRow]:
    """Return the rows to judge, in file order. Rows whose generation failed have nothing to judge."""
    if unknown := [task for task in tasks or () if task not in TASKS]:
        raise ValueError(f"unknown task {', '.join(unknown)}; tasks are {', '.join(TASKS)}")

    def wanted(row: readers.AnsweredRow) -> bool:
        if tasks is not None and row.task not in tasks:
            return False
        if earlier:
            return (row.file, row.id) in earlier
        return tasks is not None or TASKS[row.task].kind == "open"

    rows = [row for file in answers.files.values() for row in file if row.error is None and wanted(row)]
    if not rows:
        raise ValueError(f"{answers.system}: no row to judge; name tasks with --tasks, e.g. --tasks AQA SCR")
    if limit is not None and limit < len(rows):
        picked = {id(row) for row in sorted(rows, key=lambda row: digest(row.file, row.id))[:limit]}
        rows = [row for row in rows if id(row) in picked]
    return rows


def _summary(judged: Mapping[Any, Judgement], who: Judge, prompt: JudgePrompt) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for one in judged.values():
        if one.error is not None:
            reasons[one.error] = reasons.get(one.error, 0) + 1
    return {
        "schema": 1,
        "judge": who.name,
        "revision": who.revision(),
        "prompt": prompt.name,
        "prompt_sha256": prompt.sha256,
        "rows": len(judged),
        "judged": len(judged) - sum(reasons.values()),
        "missing": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
    }


def _write(
    folder: Path, rows: Sequence[readers.AnsweredRow], judged: Mapping[Any, Judgement], summary: Mapping[str, Any]
) -> None:
    """Write one `<file>.jsonl` per file, in row order, and `judge.json`; remove files that an earlier run left."""
    files: dict[str, list[str]] = {}
    for row in rows:
        one = judged[row.file, row.id]
        record = {"id": row.id, "reference": row.reference, **one._asdict()}
        files.setdefault(row.file, []).append(json.dumps(record, ensure_ascii=False))
    earlier = folder / "judge.json"
    if earlier.exists():
        for file in json.loads(earlier.read_text(encoding="utf-8"))["files"]:
            if file not in files:
                (folder / f"{file}.jsonl").unlink(missing_ok=True)
    for file, lines in files.items():
        write_atomically(folder / f"{file}.jsonl", "".join(line + "\n" for line in lines))
    summary = {**summary, "files": {file: len(lines) for file, lines in files.items()}}
    write_atomically(earlier, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


# Agreement -----------------------------------------------------------------------------------------------------


def read_judgements(folder: Path) -> dict[tuple[str, str], int]:
    """Return the scores of a folder of judge texts by (file, id); lines without one are left out.

    Raises:
        ValueError: the folder holds no judgement.
    """
    scores = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8-sig").split("\n"):
            try:
                record = json.loads(line) if line.strip() else None
            except ValueError:
                logger.warning("%s: a line that is not JSON is left out", path)
                continue
            if not isinstance(record, dict):
                continue
            score = readers.judge_score(record["score"] if "score" in record else record.get("evaluation"))
            if score is not None:
                scores[path.stem, str(record.get("id", record.get("index")))] = int(score)
    if not scores:
        raise ValueError(f"{folder}: no judgement here; expected the <file>.jsonl of a released gpt_result folder")
    return scores


def agreement(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return how two judges agree on the same answers.

    Args:
        pairs: (earlier score, new score) from 1 to 5.

    Returns:
        n; shares of equal scores and of scores at most one apart; quadratic weighted kappa (Cohen 1968; None if
        a judge never varies); Pearson correlation; mean difference new - earlier; counts 5 x 5, earlier by row.
    """
    size = HIGHEST - LOWEST + 1
    table = np.zeros((size, size), dtype=int)
    for earlier, new in pairs:
        table[earlier - LOWEST, new - LOWEST] += 1
    n = len(pairs)
    if not n:
        return {"n": 0, "counts": table.tolist()}
    step = np.arange(size)
    distance = np.abs(step[:, None] - step[None, :])
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    expected = (distance**2 * np.outer(rows, columns)).sum() / n
    one, two = np.array(pairs, dtype=float).T
    varies = one.std() > 0 and two.std() > 0
    return {
        "n": n,
        "equal": float(np.trace(table) / n),
        "within_one": float(table[distance <= 1].sum() / n),
        "kappa_quadratic": float(1 - (distance**2 * table).sum() / expected) if expected else None,
        "pearson": float(np.corrcoef(one, two)[0, 1]) if varies else None,
        "mean_difference": float((two - one).mean()),
        "counts": table.tolist(),
    }
