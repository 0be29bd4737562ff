"""Callbacks of a training: progress lines, word error rates on held-out rows, and stopping on a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from llaso.progress import Report, time_in_words

from ..recipe.recipe import WatchChoice
from .compilation import not_compiled
from .distributed import gathered
from .held_out import HeldOut
from .history import Record
from .step_timer import EVALUATING, READING, TOTAL, stepping
from .trainer import LlasoTrainer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


WAITING_SHARE = 0.2
"""Share of the time that a GPU may wait for batches before a line says so."""


def time_shares(records: Sequence[Record]) -> dict[str, float]:
    """Return the share of the time that the steps of `records` spent on each purpose, largest first."""
    sums: Counter[str] = Counter()
    for record in records:
        sums.update(record.get("seconds", {}))
    total = sums.pop(TOTAL, 0.0)
    return {purpose: seconds / total for purpose, seconds in sums.most_common()} if total else {}


def speed_in_words(records: Sequence[Record], chip: str = "", peak: float = 0.0) -> str:
    """Return the arithmetic a second of some steps together, and its share of the peak if that is known.

    Args:
        records: of the steps.
        chip: its name.
        peak: FLOP/s of all chips together; 0 if it is not known.
    """
    known = [record for record in records if "flop" in record]
    seconds = sum(stepping(record["seconds"]) for record in known)
    if seconds <= 0:
        return "arithmetic not known"
    rate = sum(record["flop"] for record in known) / seconds
    return f"{rate / 1e12:.3g} TFLOP/s" + (f", {rate / peak:.1%} of what {chip} can do" if peak else "")


class Progress(TrainerCallback):
    """Reports a line every few steps: loss, rate, tokens a second, padding share, time left.

    Args:
        trainer: its history is read, and its `logging_steps` say how often to report.
        report: takes the line.
        steps_per_epoch: optimizer steps of one epoch of the corpus.
        show_seconds: add a line that says where the time of the last steps went.
    """

    def __init__(
        self, trainer: LlasoTrainer, report: Report, steps_per_epoch: float, show_seconds: bool = False
    ) -> None:
        self.show_seconds, self.warned = show_seconds, False
        self.trainer, self.report, self.steps_per_epoch = trainer, report, steps_per_epoch
        self.every = int(trainer.args.logging_steps)
        self.marks: list[tuple[int, float]] = []  # (step, seconds): ETA and speed are of the last few lines

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.marks = [(state.global_step, time.perf_counter())]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        state.epoch = state.global_step / self.steps_per_epoch  # the Trainer takes the whole run for one epoch
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        now = time.perf_counter()
        done, seconds = state.global_step - self.marks[0][0], now - self.marks[0][1]
        steps = self.trainer.history.steps(done)
        tokens, padded = sum(r["tokens"] for r in steps), sum(r["padded"] for r in steps)
        latest = steps[-self.every :]
        left = (state.max_steps - state.global_step) * seconds / done
        self.report(
            f"step {state.global_step:>6,}/{state.max_steps:,}  epoch {state.epoch:.2f}  "
            f"loss {sum(r['loss'] for r in latest) / len(latest):.4f}  lr {latest[-1]['learning_rate']:.2e}  "
            f"{tokens / seconds:,.0f} tokens/s  padding {1 - tokens / padded:.1%}  {time_in_words(left)} left"
        )
        self.marks = [*self.marks[-4:], (state.global_step, now)]
        shares = time_shares(latest)
        if self.show_seconds:
            parts = [f"{purpose} {share:.0%}" for purpose, share in shares.items()]
            speed = speed_in_words(latest, *(self.trainer.chip or ()))
            self.report("    " + "  ".join([*parts, speed]))
        if self.trainer.timer.cuda and not self.warned and shares.get(READING, 0.0) > WAITING_SHARE:
            self.warned = True
            self.report(f"the GPU waits for batches {shares[READING]:.0%} of the time; raise compute.workers")


class HeldOutEvaluation(TrainerCallback):
    """Measures the word error rate on held-out rows every few steps and after the last one.

    A run that is asked to stop leaves an evaluation unfinished; the resumed run does it.

    Args:
        trainer: its model transcribes.
        held_out: the rows to transcribe.
        watch: how often to evaluate, and on how many rows.
        report: takes a line for each evaluation.
    """

    def __init__(self, trainer: LlasoTrainer, held_out: HeldOut, watch: WatchChoice, report: Report) -> None:
        self.trainer, self.held_out, self.report = trainer, held_out, report
        self.every, self.rows, self.final_rows = watch.evaluate_every, watch.evaluate_rows, watch.final_rows

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self.trainer.history.evaluated < state.global_step:
            self._evaluate_if_due(args, state)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if not self.trainer.all_stop:  # a stopping run only writes its checkpoint
            self._evaluate_if_due(args, state)

    def _evaluate_if_due(self, args: TrainingArguments, state: TrainerState) -> None:
        last = state.global_step == state.max_steps
        if not last and (not self.every or not state.global_step or state.global_step % self.every):
            return
        rows = self.final_rows if last else self.rows
        if not self.held_out.rows[:rows]:
            return
        with self.trainer.timer.measure(EVALUATING), not_compiled(self.trainer.compiled):
            result = self.held_out.evaluate(
                self.trainer.unwrapped, rows, args.process_index, args.world_size, self._asked_to_stop
            )
        if result is None:
            self.trainer.all_stop = True
            return
        counts = self.trainer.accelerator.reduce(
            torch.tensor([result["errors"], result["words"], result["rows"]], device=args.device), reduction="sum"
        )
        errors, words, rows = (int(value) for value in counts.tolist())
        wer = errors / max(1, words)
        self.trainer.history.add(
            {"kind": "held_out", "step": state.global_step, "wer": wer, "errors": errors, "words": words, "rows": rows}
        )
        self.report(f"held out: word error rate {wer:.3f} on {rows} rows ({result['seconds']:.1f} s)")
        for said, heard in result["samples"][:2]:
            self.report(f"    said  {said}")
            self.report(f"    heard {heard}")
        self.trainer.log({"held_out_wer": wer})

    def _asked_to_stop(self) -> bool:
        return any(gathered(self.trainer.asked_to_stop()))


class StopOnSignal(TrainerCallback):
    """Ends the run after the current step, with a checkpoint, on SIGTERM, Ctrl-C or a lost terminal.

    Used as a context: handlers are set inside it and put back after it. Outside the main thread no handler can be
    set, and it does nothing; a signal that this process was started to ignore (`nohup`) stays ignored. Several
    processes stop at the same step, even if only one got the signal. More signals change nothing, since a launcher
    sends its own after the terminal's; SIGQUIT (Ctrl-\\) and SIGKILL end the run at once.

    Args:
        trainer: the run to stop.
    """

    def __init__(self, trainer: LlasoTrainer) -> None:
        self.trainer = trainer
        trainer.asked_to_stop = lambda: self.received is not None
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and self.trainer.args.world_size > 1:
            return  # the launcher now ends the other processes, which still have to report why
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def end_run(self, report: Report) -> None:
        """Leave the program if the run was stopped.

        Raises:
            SystemExit: it was; the code is 128 and the signal's number.
        """
        if self.trainer.all_stop:
            step = self.trainer.state.global_step
            report(f"stopped after step {step:,}, which is saved; the same command goes on from there")
            self.trainer.accelerator.wait_for_everyone()  # once one process is gone, a launcher ends the others
            raise SystemExit(128 + (self.received or signal.SIGTERM))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.trainer.all_stop:
            control.should_save = control.should_training_stop = True
