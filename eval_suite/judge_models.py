"""Puts questions to a language model that judges, within a budget of calls, and keeps every reply as it comes.

A judge is a chat server or a text model of transformers. A reply is one JSON object that repeats a ticket from the
prompt; what else a model writes is no judgement. Replies lie in `records/` by content, so that a run that is killed or
whose budget is spent goes on without asking anything twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm.auto import tqdm

from .answer_records import Records, Reply
from .corpus import digest
from .endpoint import ChatEndpoint, Completion, RequestRefusedError

logger = logging.getLogger(__name__)

PROMPTS = Path(__file__).parent / "prompts"
MAX_TOKENS = 400


class JudgeQuestion(NamedTuple):
    """One question to a judge: the key of its reply, the conversation, and the JSON schema of the reply."""

    key: str
    about: str  # the row or pair, for the record
    messages: list[dict[str, Any]]
    schema: dict[str, Any]


@dataclass(frozen=True)
class JudgePrompt:
    """A versioned prompt file."""

    name: str
    system: str
    user: str
    sha256: str

    @classmethod
    def load(cls, name: str, family: str = "judge") -> JudgePrompt:
        """Read `prompts/<name>.yaml`.

        Args:
            name: of the prompt, e.g. "judge_v1".
            family: prompts of one family ask for the same kind of reply: "judge" for a score, "judge_pairs" for the
                better of two answers.

        Raises:
            ValueError: there is no prompt of this name.
        """
        import yaml

        path = PROMPTS / f"{name}.yaml"
        known = sorted(found.stem for found in PROMPTS.glob(f"{family}_v*.yaml"))
        if name not in known:
            raise ValueError(f"no judge prompt {name!r}; there are {', '.join(known)}")
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        return cls(name, content["system"], content["user"], hashlib.sha256(text.encode()).hexdigest())

    def question(self, judge: Judge, about: str, case: Mapping[str, str], schema: Mapping[str, Any]) -> JudgeQuestion:
        """Return the question that puts one case to a judge; equal cases have equal keys.

        Args:
            judge: who is asked.
            about: the row or pair, for the record.
            case: what is to be judged; it reaches the judge as JSON data.
            schema: the fields of a reply beside ticket and explanation, each with its JSON schema.
        """
        key = digest([self.sha256, judge.name, judge.revision(), MAX_TOKENS], *case.values())
        user = self.user.replace("{ticket}", ticket(key)).replace("{case}", json.dumps(case, ensure_ascii=False))
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": user}]
        return JudgeQuestion(key, about, messages, reply_schema(ticket(key), schema))


def ticket(key: str) -> str:
    """Return what a reply must repeat: it cannot be guessed from the answer and is the same on every run."""
    return digest("ticket", key)[:12]


def reply_schema(ticket: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a judge's reply, for servers that hold a model to one."""
    properties = {
        "ticket": {"type": "string", "enum": [ticket]},
        "explanation": {"type": "string"},
        **fields,
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def reply_fields(reply: str, ticket: str, field: str) -> dict[str, Any]:
    """Read a judge's reply: one JSON object with the ticket, an explanation and `field`, optionally fenced.

    Nothing is searched for in running text.

    Raises:
        ValueError: the reply is anything else; the message says what.
    """
    text = reply.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") + 1 : -3].strip()
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ValueError("the reply is not one JSON object") from None
    if not isinstance(fields, dict) or set(fields) != {"ticket", "explanation", field}:
        raise ValueError(f"the reply is not an object of ticket, explanation and {field}")
    if fields["ticket"] != ticket:
        raise ValueError("the reply carries another ticket")
    if not isinstance(fields["explanation"], str):
        raise ValueError("the explanation is not text")
    return fields


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

    def replies(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[JudgeQuestion, Reply]]:
        """Yield the reply to each question as it comes, at temperature 0."""


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

    def replies(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[JudgeQuestion, Reply]]:
        failure: ConnectionError | None = None
        with ThreadPoolExecutor(max_workers=len(questions)) as pool:
            asked = {pool.submit(self._ask, question): question for question in questions}
            for done in as_completed(asked):
                try:
                    yield asked[done], done.result()
                except ConnectionError as error:  # the others' replies are kept first
                    failure = error
        if failure is not None:
            raise failure

    def _ask(self, question: JudgeQuestion) -> Reply:
        parameters: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS}
        try:
            if self._takes_schema:
                schema = {"name": "judgement", "strict": True, "schema": question.schema}
                form = {"type": "json_schema", "json_schema": schema}
                try:
                    return _reply(self._endpoint.ask(question.messages, response_format=form, **parameters))
                except RequestRefusedError as error:
                    if not any(word in str(error) for word in ("response_format", "json_schema")):
                        raise
                    logger.info("%s takes no JSON schema; the reply is only checked", self.name)
                    self._takes_schema = False
            return _reply(self._endpoint.ask(question.messages, **parameters))
        except RequestRefusedError as error:
            return Reply("", str(error))


def _reply(completion: Completion) -> Reply:
    return Reply(completion.text, None, {"prompt_tokens": completion.prompt_tokens, "tokens": completion.tokens})


class LocalJudge:
    """A judge run here: any text model of transformers with a chat template."""

    def __init__(self, model: str, *, revision: str | None = None):
        self.name = model
        self._hub_revision = revision
        self._own_revision: str | None = None
        self._loaded: tuple[Any, Any] | None = None

    def revision(self) -> str:
        from .backends import checkpoint_revision

        if self._own_revision is None:
            self._own_revision = checkpoint_revision(self.name, revision=self._hub_revision)
        return self._own_revision

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from .backends import own_device

        tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self._hub_revision, padding_side="left")
        if tokenizer.chat_template is None:
            raise ValueError(f"{self.name}: its tokenizer has no chat template, so it cannot be asked to judge")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(self.name, revision=self._hub_revision, dtype="auto")
        return tokenizer, model.to(own_device()).eval()

    def replies(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[JudgeQuestion, Reply]]:
        self._loaded = self._loaded or self._load()
        try:
            yield from zip(questions, self._replies(questions), strict=True)
            return
        except (RuntimeError, MemoryError) as error:  # as a rule out of memory: a smaller batch may do
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        if len(questions) == 1:
            yield questions[0], Reply("", reason)
            return
        middle = len(questions) // 2
        yield from self.replies(questions[:middle])
        yield from self.replies(questions[middle:])

    def _replies(self, questions: Sequence[JudgeQuestion]) -> list[Reply]:
        import torch

        assert self._loaded is not None
        tokenizer, model = self._loaded
        conversations = [question.messages for question in questions]
        inputs = tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, pad_token_id=tokenizer.pad_token_id, **greedy)
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        read = inputs["attention_mask"].sum(dim=1).tolist()
        made = (written != tokenizer.pad_token_id).sum(dim=1).tolist()
        return [
            Reply(text, None, {"prompt_tokens": prompt, "tokens": tokens})
            for text, prompt, tokens in zip(texts, read, made, strict=True)
        ]


def judge_named(judge: str | Judge, endpoint: str | None, revision: str | None) -> Judge:
    """Return the judge of a name: behind `endpoint` if there is one, else a local checkpoint or a model of the Hub."""
    if not isinstance(judge, str):
        return judge
    if endpoint:
        return EndpointJudge(ChatEndpoint(endpoint, judge), revision or "served")
    return LocalJudge(judge, revision=revision)


# Asking --------------------------------------------------------------------------------------------------------

NOT_ASKED = "not asked: the budget of calls is spent; run again to go on"


@dataclass(frozen=True)
class JudgeReplies:
    """The replies to a set of questions by key, and how many of them were asked just now."""

    by_key: dict[str, Reply]
    asked: int

    def __getitem__(self, key: str) -> Reply:
        return self.by_key.get(key, Reply("", NOT_ASKED))

    def usage(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return what the replies to these questions took, over all runs that asked them.

        Returns:
            `replies`; `prompt_tokens` and `tokens`, read and written, over the replies whose tokens were counted; and
            `uncounted`, how many were not.
        """
        times = [self.by_key[key].time or {} for key in sorted(set(keys) & self.by_key.keys())]
        counted = [one for one in times if one.get("tokens") is not None and one.get("prompt_tokens") is not None]
        return {
            "replies": len(times),
            "prompt_tokens": sum(one["prompt_tokens"] for one in counted),
            "tokens": sum(one["tokens"] for one in counted),
            "uncounted": len(times) - len(counted),
        }


def ask_judge(
    judge: Judge,
    questions: Iterable[Sequence[JudgeQuestion]],
    out: Path,
    *,
    batch_size: int,
    max_calls: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> JudgeReplies:
    """Ask what has not been answered yet, and write each reply below `out` as it comes.

    Args:
        judge: who is asked.
        questions: in groups of which only the whole is of use, e.g. a pair in both orders.
        out: the folder of the judgements; the replies lie in its `records/`.
        batch_size: questions at once.
        max_calls: ask no more than this many. Whole groups are taken in an order that depends on their content
            alone, so that what a small budget covers is a sample of the whole. A request that a busy server makes us
            send again counts once.
        overwrite: write to a folder that holds something else.
        progress: show a bar with the time left.

    Raises:
        ValueError: `out` holds something else.
        ConnectionError: the server cannot be reached, or refuses every request. What was replied is kept.
    """
    records = Records(out, overwrite=overwrite)
    kept = records.read(keep_errors=False)
    groups: dict[str, list[JudgeQuestion]] = {}
    for group in questions:
        if waiting := [question for question in group if question.key not in kept]:
            groups.setdefault(waiting[0].key, waiting)
    chosen: dict[str, JudgeQuestion] = {}
    for key in sorted(groups):
        added = {question.key: question for question in groups[key]}
        if max_calls is not None and len(chosen.keys() | added.keys()) > max_calls:
            break
        chosen |= added
    pending = sorted(chosen.values(), key=lambda question: (-len(question.messages[-1]["content"]), question.key))
    try:
        with tqdm(total=len(pending), desc="judge", unit="answer", disable=not progress, file=sys.stderr) as bar:
            for start in range(0, len(pending), batch_size):
                for question, reply in judge.replies(pending[start : start + batch_size]):
                    records.append([(question.key, question.about, reply)])
                    bar.update()
    finally:
        records.close()
    return JudgeReplies(records.read(), len(pending))


def made_by(
    judge: Judge, prompt: JudgePrompt, replies: JudgeReplies, questions: Iterable[JudgeQuestion]
) -> dict[str, Any]:
    """Return who judged by which prompt, and what that took."""
    return {
        "schema": 1,
        "judge": judge.name,
        "revision": judge.revision(),
        "prompt": prompt.name,
        "prompt_sha256": prompt.sha256,
        "usage": replies.usage(question.key for question in questions),
    }


def missing_reasons(errors: Iterable[str | None]) -> dict[str, int]:
    """Count why judgements are missing."""
    return dict(sorted(Counter(error for error in errors if error is not None).items()))
