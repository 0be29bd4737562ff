"""The model thread: requests join the running batch between two steps, and leave it when they end.

One thread runs the model; any thread may submit and cancel requests. The text of each answer is delivered in chunks
while its tokens are generated.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from llaso.alignment.joint_decoding import JointDecoder, JointDecoding
from modeling_llaso.loading import end_ids

from .batch import Batch
from .detokenizer import IncrementalDetokenizer
from .limits import Limits
from .sampling import Sampler, next_tokens

logger = logging.getLogger(__name__)

PREFILL_ROWS = 8
"""Prompts that are prefilled together; the running requests wait meanwhile."""


@dataclass(frozen=True)
class AnswerChunk:
    """A part of an answer.

    Args:
        text: the new text.
        tokens: number of tokens of the answer so far.
        logprob: sum of their log-probabilities.
        finish_reason: `"stop"` or `"length"` if the answer ends here.
    """

    text: str
    tokens: int
    logprob: float
    finish_reason: str | None = None


@dataclass(eq=False)
class GenerationRequest:
    """A prompt for the model, and how to answer it.

    Args:
        inputs: the processor's output for one conversation; freed after the prefill, because audio is large.
        prompt_tokens: length of the prompt, audio included.
        max_tokens: maximum number of tokens of the answer.
        deliver: called in the model thread with each chunk, or with the exception that ended the answer. It must not
            raise.
        sampler: chooses the tokens.
        stops: sequences that end the answer.
        stream: deliver text as it is generated; otherwise all of it at the end.
        transcribes: the answer is the transcript of the prompt's one recording.
        cancelled: set by `Engine.cancel`.
    """

    inputs: Mapping[str, torch.Tensor]
    prompt_tokens: int
    max_tokens: int
    deliver: Callable[[AnswerChunk | Exception], None]
    sampler: Sampler
    stops: Sequence[str] = ()
    stream: bool = False
    transcribes: bool = False
    cancelled: bool = False

    @property
    def max_length(self) -> int:
        """Return how many columns of the cache the request may occupy."""
        return self.prompt_tokens + self.max_tokens


class RunningRequest:
    """A request in the batch, with its answer so far.

    Args:
        request: whose answer this is.
        tokenizer: decodes it.
        joint: scores its next tokens with CTC as well; by default the language model's scores count alone.
    """

    def __init__(self, request: GenerationRequest, tokenizer, joint: JointDecoding | None = None):
        self.request, self._joint = request, joint
        self._generated: list[int] = []
        self.text = IncrementalDetokenizer(tokenizer, request.stops)
        self.tokens = 0
        self.logprob = 0.0
        self.last_token = -1
        self._undelivered = ""

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the scores of the next token, `(vocab_size,)`, given the language model's logits."""
        if self._joint is None:
            return logits
        return self._joint(torch.tensor([self._generated], dtype=torch.long), logits[None])[0]

    def add_token(self, token: int, logprob: float, end_tokens: frozenset[int]) -> bool:
        """Add a token, and deliver the text that became final.

        Returns:
            Whether the answer continues.
        """
        self.tokens += 1
        self.logprob += logprob
        self.last_token = token
        if self._joint is not None:
            self._generated.append(token)
        reason = None
        if token in end_tokens:
            reason = "stop"
        else:
            self._undelivered += self.text.push(token)
            if self.text.stopped:
                reason = "stop"
            elif self.tokens == self.request.max_tokens:
                reason = "length"
        if reason:
            self._undelivered += self.text.finish()
            # The text that was held back may complete a stop sequence.
            reason = "stop" if self.text.stopped else reason
        if reason or (self.request.stream and self._undelivered):
            self.request.deliver(AnswerChunk(self._undelivered, self.tokens, self.logprob, reason))
            self._undelivered = ""
        return reason is None


class Engine:
    """Generates answers in its own thread, from construction until `close`.

    Args:
        model: a `LlasoForConditionalGeneration`.
        tokenizer: its tokenizer. The engine decodes with a copy, because encoding in another thread changes its state.
        limits: `batch_rows` and `batch_tokens` apply here.
        joint: decodes transcripts; by default the language model decodes them alone.
    """

    def __init__(self, model, tokenizer, limits: Limits, joint: JointDecoder | None = None):
        self._tokenizer = copy.deepcopy(tokenizer)
        self._limits = limits
        self._end_tokens = frozenset(end_ids(model))
        self._joint = joint
        self._batch = Batch(model.eval())
        self._rows: list[RunningRequest] = []
        self._waiting: deque[GenerationRequest] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="llaso-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the engine takes requests."""
        return self._thread.is_alive() and not self._closing

    @property
    def running(self) -> int:
        """Return the number of requests in the batch."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Return the number of requests that wait for a place in the batch."""
        return len(self._waiting)

    def submit(self, request: GenerationRequest) -> None:
        """Add a request to the queue.

        Raises:
            RuntimeError: the engine is closed.
        """
        with self._changed:
            if not self.alive:
                raise RuntimeError("the engine is closed")
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: GenerationRequest) -> None:
        """Stop a request. The result of the current step may still be delivered."""
        with self._changed:
            request.cancelled = True
            if request in self._waiting:
                self._waiting.remove(request)

    def close(self) -> None:
        """End the thread; a `RuntimeError` is delivered to unfinished requests."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._rows)
                if self._closing:
                    break
                self._drop([row for row in self._rows if row.request.cancelled])
                requests = self._next_requests()
            if requests:
                try:
                    self._prefill(requests)
                except Exception as error:
                    logger.exception("%d prompts could not be read", len(requests))
                    _fail(requests, error)
            if self._rows:
                try:
                    self._step()
                except Exception as error:
                    logger.exception("a step of %d rows failed", len(self._rows))
                    _fail([row.request for row in self._rows], error)
                    self._drop(self._rows)
        _fail([*(row.request for row in self._rows), *self._waiting], RuntimeError("the server is shutting down"))
        self._waiting.clear()
        self._drop(self._rows)

    def _next_requests(self) -> list[GenerationRequest]:
        """Take as many waiting requests, in their order, as fit into the batch."""
        requests: list[GenerationRequest] = []
        longest = max((row.request.max_length for row in self._rows), default=0)
        while self._waiting and len(requests) < PREFILL_ROWS:
            rows = len(self._rows) + len(requests) + 1
            longest = max(longest, self._waiting[0].max_length)
            if rows > self._limits.batch_rows or (rows > 1 and rows * longest > self._limits.batch_tokens):
                break
            requests.append(self._waiting.popleft())
        return requests

    def _prefill(self, requests: list[GenerationRequest]) -> None:
        logits, audio = self._batch.join([request.inputs for request in requests])
        running = len(self._rows)
        try:
            for request, own in zip(requests, audio, strict=True):
                request.inputs = {}
                joint = self._joint.for_audio([own]) if self._joint and request.transcribes else None
                self._rows.append(RunningRequest(request, self._tokenizer, joint))
            self._add_tokens(logits, self._rows[running:])
        except Exception:  # the requests fail, so their rows may not stay in the batch
            self._batch.keep(range(running))
            self._rows = self._rows[:running]
            raise

    def _step(self) -> None:
        self._add_tokens(self._batch.step([row.last_token for row in self._rows]), self._rows)

    def _add_tokens(self, logits: torch.Tensor, rows: list[RunningRequest]) -> None:
        """Choose the next token of each row, and remove the rows that ended."""
        logits = logits.float()
        scores = logits
        if self._joint:
            scores = torch.stack([row.scores(own) for row, own in zip(rows, logits, strict=True)])
        tokens = next_tokens(scores, [row.request.sampler for row in rows])
        chosen = torch.tensor(tokens, device=logits.device)[:, None]
        logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        ended = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if not math.isfinite(logprob):
                row.request.deliver(FloatingPointError("the model's logits are not finite"))
                ended.append(row)
            elif not row.add_token(token, logprob, self._end_tokens):
                ended.append(row)
        self._drop(ended)

    def _drop(self, rows: list[RunningRequest]) -> None:
        kept = [number for number, row in enumerate(self._rows) if row not in rows]
        self._batch.keep(kept)
        self._rows = [self._rows[number] for number in kept]


def _fail(requests: Sequence[GenerationRequest], error: Exception) -> None:
    for request in requests:
        request.deliver(error)
