"""Runs the quickstart: corpora, backbones, Stage 1, Stage 2, evaluation and report.

Each stage calls the functions behind the commands and passes files to the next. A finished stage is recorded in
`quickstart.json`, so that an interrupted quickstart goes on with the first unfinished one.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llaso.progress import progress_report, time_in_words
from llaso_common.atomic_write import write_atomically

if TYPE_CHECKING:
    from dataset_scripts.sources.base import Source

CORPORA = ("align", "instruct", "eval")
STAGES = ("corpora", "backbones", "stage 1", "stage 2", "evaluation", "report")
REPORT_SECONDS = 10.0
"""Between two lines of progress."""
AMERICAN = "en-us"
"""The accent that a person's recordings are spelled out in."""


@dataclass(frozen=True)
class Options:
    """Options of a quickstart; they stay the same for all runs in a folder.

    Args:
        speech: real recordings: a sources file, a folder laid out like the Free Spoken Digit Dataset, or any manifest,
            folder or data set that `llaso data sources --inspect` reads; "" for none.
        encoder, llm: Hub ids or folders of real backbones; "" for the stand-ins.
        seed: of every draw.
        size: "standard", or "minimum", which only shows in a minute or two that every stage works.
    """

    speech: str = ""
    encoder: str = ""
    llm: str = ""
    seed: int = 0
    size: str = "standard"

    def __post_init__(self) -> None:
        if bool(self.encoder) != bool(self.llm):
            raise ValueError("--encoder and --llm go together: a stand-in does not fit a real backbone")
        if self.size not in SIZES:
            raise ValueError(f"no size {self.size!r}; there are {', '.join(SIZES)}")


@dataclass(frozen=True)
class Size:
    """The amounts of one size.

    Args:
        utterances, notes, questions: items of the synthetic source.
        eval_rows, validation_rows: rows held out.
        encoder_steps, llm_steps: of the stand-ins.
        overrides: of both training recipes.
    """

    utterances: int
    notes: int
    questions: int
    eval_rows: int
    validation_rows: int
    encoder_steps: int
    llm_steps: int
    overrides: tuple[str, ...] = ()


SIZES = {
    "standard": Size(
        utterances=6000,
        notes=700,
        questions=1500,
        eval_rows=1400,
        validation_rows=600,
        encoder_steps=2600,
        llm_steps=2200,
    ),
    "minimum": Size(
        utterances=160,
        notes=24,
        questions=90,
        eval_rows=80,
        validation_rows=12,
        encoder_steps=12,
        llm_steps=12,
        overrides=("optimizer.max_steps=6", "watch.evaluate_rows=4", "watch.final_rows=8", "watch.save_every=3"),
    ),
}


def quickstart(out: str | Path, options: Options, *, ignore_gate: bool = False) -> int:
    """Run the stages that are not finished yet.

    Args:
        out: folder for corpora, models and report.
        options: of the quickstart.
        ignore_gate: go on to Stage 2 even if Stage 1 did not pass its gate.

    Returns:
        0, or 1 if Stage 1 did not pass its gate.

    Raises:
        ValueError: `out` holds a quickstart with other options, or an input cannot be used.
    """
    run = _Pipeline(Path(out), options)
    run.stage("corpora", run.build_corpora)
    if options.encoder:
        print(f"[2/6] backbones: {options.encoder} and {options.llm}, as given")
    else:
        run.stage("backbones", run.train_backbones)
    run.stage("stage 1", run.align)
    if not run.gate_passed():
        print(run.gate_message())
        if not ignore_gate:
            return 1
    run.stage("stage 2", run.instruct)
    run.stage("evaluation", run.evaluate)
    run.stage("report", run.report)
    print("\n" + run.last_lines())
    return 0


class _Pipeline:
    """One quickstart in its folder."""

    def __init__(self, out: Path, options: Options) -> None:
        self.out, self.options, self.size = out, options, SIZES[options.size]
        self.record_file = out / "quickstart.json"
        self.record: dict[str, Any] = {"options": asdict(options), "done": {}}
        if self.record_file.exists():
            self.record = json.loads(self.record_file.read_text())
            if self.record["options"] != asdict(options):
                raise ValueError(
                    f"{out} holds a quickstart with other options ({self.record['options']}); "
                    "name another folder with --out, or delete this one"
                )
        out.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run a stage unless it is done, and record its result and time."""
        label = f"[{1 + STAGES.index(name)}/{len(STAGES)}] {name}"
        if name in self.record["done"]:
            print(f"{label}: done before")
            return
        print(f"{label}", flush=True)
        started = time.perf_counter()
        outcome = work()
        self.record["done"][name] = {"seconds": round(time.perf_counter() - started, 1), **outcome}
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        self.record["peak_memory_mb"] = max(self.record.get("peak_memory_mb", 0), round(max(peaks) / 1024))
        write_atomically(self.record_file, json.dumps(self.record, indent=1, ensure_ascii=False))
        print(f"{label}: {time_in_words(self.record['done'][name]['seconds'])}", flush=True)

    # --- corpora ----------------------------------------------------------------------------------------------------

    def build_corpora(self) -> dict[str, Any]:
        """Build small versions of LLaSO-Align, -Instruct and -Eval."""
        from dataset_scripts.build import build
        from dataset_scripts.sources import quickstart as synthetic

        real = bool(self.options.speech)
        size = self.size
        counts = {"utterances": size.utterances, "notes": size.notes, "questions": size.questions}
        sources = [synthetic.SOURCE.at(".", **counts, seed=self.options.seed, real=real)]
        if real:
            sources += self.recordings()
        rows = {}
        for corpus in CORPORA:
            build(
                corpus,
                sources,
                self.corpus(corpus),
                seed=self.options.seed,
                clips=self.out / "clips",
                workers=os.cpu_count() or 1,
                eval_rows=size.eval_rows,
                validation_rows=size.validation_rows,
                rows_per_shard=500,
                voices=synthetic.voices(),
                against=[self.corpus(other) for other in CORPORA[:2]] if corpus == "eval" else (),
                progress=progress_report(f"      llaso-{corpus}: rows", _say, REPORT_SECONDS),
            )
            rows[corpus] = json.loads((self.corpus(corpus) / "build.json").read_text())["rows"]
        return {"rows": rows}

    def recordings(self) -> list[Source]:
        """Return the sources of `speech`: of a sources file, of digits, or of data whose columns are guessed."""
        from dataset_scripts import inspect_source, sources_file
        from dataset_scripts.sources import fsdd

        said = Path(self.options.speech).expanduser()
        if said.suffix in (".yaml", ".yml"):
            return sources_file.read(said).sources
        if any((said / "recordings").glob("*.wav")):
            return [fsdd.SOURCE.at(said, strings=2)]
        guessed = self.out / "speech-sources.yaml"
        if not guessed.exists():
            write_atomically(guessed, inspect_source.inspect(self.options.speech))
        print(f"      {said}: its columns are guessed, see {guessed}")
        return sources_file.read(guessed).sources

    def corpus(self, name: str) -> Path:
        """Return the folder of a corpus."""
        return self.out / f"llaso-{name}"

    # --- backbones --------------------------------------------------------------------------------------------------

    def train_backbones(self) -> dict[str, Any]:
        """Train the small encoder and language model side by side, on half the cores each."""
        print("      no pretrained weights are fetched: a small Whisper encoder and a small Llama are trained from")
        print("      scratch in their place. This step only replaces a download (--encoder ID --llm ID skips it).")
        spelled = self.out / "backbones" / "phonemes.json"
        if not spelled.exists():
            self.spell_transcripts(spelled)
        spawn = multiprocessing.get_context("spawn")
        reports = spawn.Queue()
        jobs = [
            spawn.Process(target=work, args=(self.out, self.size, self.options.seed, reports), daemon=True)
            for work in (_train_encoder, _train_language_model)
        ]
        for job in jobs:
            job.start()
        while any(job.is_alive() for job in jobs) or not reports.empty():
            with contextlib.suppress(queue.Empty):
                print(f"      {reports.get(timeout=1.0)}", flush=True)
            if any(job.exitcode for job in jobs):
                for job in jobs:
                    job.terminate()
                break
        if any(job.exitcode for job in jobs):
            raise RuntimeError("training a stand-in failed; its traceback is above")
        return {}

    def spell_transcripts(self, file: Path) -> None:
        """Write the phonemes of Align's training transcripts, each in the accent of its voice."""
        from dataset_scripts import synthesize

        rows = _rows(self.corpus("align"), "train", ("id", "target", "voice"))
        spelled = {row["id"]: synthesize.phonemes(row["target"], row["voice"] or AMERICAN) for row in rows}
        write_atomically(file, json.dumps(spelled, ensure_ascii=False))

    # --- the two training stages ------------------------------------------------------------------------------------

    def align(self) -> dict[str, Any]:
        """Train Stage 1: the projector, on ASR."""
        encoder = self.options.encoder or str(self.out / "backbones" / "encoder")
        llm = self.options.llm or str(self.out / "backbones" / "llm")
        return self.train(
            "quickstart_stage1",
            f"model.encoder={encoder}",
            f"model.llm={llm}",
            f"data.path={self.corpus('align')}",
            f"out={self.out / 'stage1'}",
        )

    def instruct(self) -> dict[str, Any]:
        """Train Stage 2: the projector and the language model, on all tasks."""
        return self.train(
            "quickstart_stage2",
            f"model.checkpoint={self.out / 'stage1'}",
            f"data.path={self.corpus('instruct')}",
            f"out={self.model}",
        )

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.out / "llaso-tiny"

    def train(self, recipe: str, *overrides: str) -> dict[str, Any]:
        """Train one stage by its recipe."""
        from ..training.run.train import train

        seeded = (*overrides, f"seed={self.options.seed}", *self.size.overrides)
        return asdict(train(recipe, seeded, report=lambda line: print(f"      {line}", flush=True)))

    def gate_passed(self) -> bool:
        """Return whether Stage 1's word error rate on held-out rows is below the recipe's gate."""
        result = self.record["done"]["stage 1"]
        return result["wer"] is not None and result["wer"] < result["gate_wer"]

    def gate_message(self) -> str:
        """Return the message for a Stage 1 that did not pass its gate, with the remedy."""
        result = self.record["done"]["stage 1"]
        return (
            f"Stage 1 did not pass its gate: WER {result['wer']:.3f} on {result['wer_words']} held-out words, "
            f"{result['gate_wer']:.2f} wanted. A model that mishears cannot follow instructions: see "
            f"{self.out / 'stage1' / 'loss.png'}, train longer, or go on all the same with --ignore-gate."
        )

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Generate the answers to LLaSO-Eval."""
        from eval_suite.generate import generate

        generate(
            self.model, self.corpus("eval"), self.out / "predictions", batch_size=32, max_new_tokens=64, overwrite=True
        )
        return {}

    def report(self) -> dict[str, Any]:
        """Write the scores, the report and the model's card, and return what the last lines quote."""
        from eval_suite.report import write_report
        from eval_suite.score import score_rows

        from ..publishing.model_card import write_card

        scored = score_rows(self.out / "predictions", protocol="strict", system="llaso-tiny")
        scored.write(self.out / "scores.json")
        write_report(
            [scored], self.out / "report", data=self.corpus("eval"), title="LLaSO quickstart", seed=self.options.seed
        )
        (self.model / "README.md").write_text(write_card(self.out), encoding="utf-8")
        return {"held_out": self.held_out_recording(), "real_speech": _real_speech(scored.content)}

    def held_out_recording(self) -> dict[str, str]:
        """Pick one transcribed recording of the evaluation, preferably of a person, and write its audio to a file."""
        rows = _rows(self.corpus("eval"), "test", ("id", "task", "target", "speaker", "audio"))
        spoken = [row for row in rows if row["task"] == "ASR"]
        chosen = min(spoken, key=lambda row: (not row["speaker"], row["id"]))
        file = self.out / "held-out.flac"
        file.write_bytes(chosen["audio"][0]["bytes"])
        answers = (
            json.loads(line)
            for path in sorted((self.out / "predictions").glob("*.jsonl"))
            for line in path.read_text(encoding="utf-8").split("\n")
            if line
        )
        answer = next(answer["prediction"] for answer in answers if answer["id"] == chosen["id"])
        return {"file": str(file), "said": chosen["target"], "heard": answer, "speaker": chosen["speaker"]}

    # --- the end ----------------------------------------------------------------------------------------------------

    def last_lines(self) -> str:
        """Return the closing lines: the folders, one transcription, and how to load the model."""
        done, size = self.record["done"], self.record.get("peak_memory_mb", 0)
        heard = done["report"]["held_out"]
        whose = f"speaker {heard['speaker']}" if heard["speaker"] else "a synthetic voice"
        seconds = sum(stage["seconds"] for stage in done.values())
        real = [f"real speech {line}" for line in done["report"]["real_speech"]]
        return "\n".join(
            (
                (self.out / "report" / "report.md").read_text(encoding="utf-8").split("\n## ")[0].strip(),
                "",
                f"corpora     {', '.join(str(self.corpus(name)) for name in CORPORA)}",
                f"model       {self.model}",
                f"report      {self.out / 'report' / 'index.html'} (and report.json, radar.png)",
                f"time        {time_in_words(seconds)} of work; {size:,} MB of memory at most in one process",
                f"stage 1     WER {done['stage 1']['wer']:.3f} on held-out voices and sentences"
                f" ({done['stage 1']['wer_words']} words)",
                *real,
                "",
                f"held out, {whose}: {heard['file']}",
                f"  said   {heard['said']}",
                f"  heard  {heard['heard']}",
                "",
                "Load it:",
                "  import modeling_llaso",
                "  from transformers import AutoModelForMultimodalLM, AutoProcessor",
                f"  model, processor = (auto.from_pretrained({str(self.model)!r}) for auto in "
                "(AutoModelForMultimodalLM, AutoProcessor))",
            )
        )


def _real_speech(scores: Mapping[str, Any]) -> list[str]:
    """Return word accuracy on the speaker kept from all training, if recordings of people were given.

    Unnormalized: Whisper's normalizer writes "two five" as the one word "25", and would count strings for words.
    """
    rates = [entry["metrics"]["wer_raw"] for name, entry in scores["files"].items() if name.startswith("fsdd_ASR")]
    return [
        f"word accuracy {1 - rate['value']:.3f} [{1 - rate['high']:.3f}, {1 - rate['low']:.3f}] on the speaker kept "
        f"from training ({rate['n']} recordings)"
        for rate in rates
    ]


# --- work in processes of its own -----------------------------------------------------------------------------------


def _train_encoder(out: Path, size: Size, seed: int, reports: Any) -> None:
    """Train the small encoder on Align's recordings and the notes of Instruct."""
    import torch

    from llaso_common.audio import read_audio

    from . import small_backbones

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    spelled = json.loads((out / "backbones" / "phonemes.json").read_text())
    heard = [(row, small_backbones.split_phonemes(spelled[row["id"]])) for row in _rows(out / "llaso-align", "train")]
    notes = {row["sha256"]: row for row in _rows(out / "llaso-instruct", "train") if row["task"] in ("PP", "IC")}
    heard += [(row, ()) for row in notes.values()]
    clips = [
        small_backbones.HeardClip(read_audio(row["audio"][0]["bytes"], name=row["id"]), sounds)
        for row, sounds in heard
    ]
    schedule = small_backbones.encoder_schedule(size.encoder_steps)
    small_backbones.train_encoder(clips, out / "backbones" / "encoder", reports.put, seed=seed, schedule=schedule)


def _train_language_model(out: Path, size: Size, seed: int, reports: Any) -> None:
    """Train the small language model on text: Align's transcripts in phonemes, and the words of Instruct."""
    import torch

    from . import small_backbones

    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    spelled = json.loads((out / "backbones" / "phonemes.json").read_text())
    lines = [
        small_backbones.Line(_written(row), row["target"], small_backbones.split_phonemes(spelled[row["id"]]))
        for row in _rows(out / "llaso-align", "train", ("id", "messages", "target"))
    ]
    instructions = [
        text
        for row in _rows(out / "llaso-instruct", "train", ("messages", "target"))
        for text in (_written(row), row["target"])
    ]
    schedule = small_backbones.llm_schedule(size.llm_steps)
    small_backbones.train_language_model(
        lines, instructions, out / "backbones" / "llm", reports.put, seed=seed, schedule=schedule
    )


def _written(row: dict[str, Any]) -> str:
    """Return the text of a row's first message."""
    return " ".join(part["text"] for part in row["messages"][0]["content"] if part["type"] == "text")


def _rows(corpus: Path, split: str, columns: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a split, in the order of the files."""
    import pyarrow.parquet as parquet

    files = sorted(corpus.glob(f"data/*/{split}-*.parquet"))
    names = list(columns) if columns else None
    return [row for file in files for row in parquet.read_table(file, columns=names).to_pylist()]


def _say(line: str) -> None:
    print(line, flush=True)
