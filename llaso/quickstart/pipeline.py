"""Runs the quickstart: corpora, backbones, Stage 1, Stage 2, evaluation and report.

Each stage calls the functions behind the commands and passes files to the next. A finished stage is recorded in
`quickstart.json`, so that an interrupted quickstart goes on with the first unfinished one.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llaso.progress import progress_report, time_in_words
from llaso_common.atomic_write import write_atomically

from ..publishing.finished_run import REAL_MODEL, STAND_IN_MODEL
from .options import RECORD, SIZES, Options
from .stand_ins import rows_of

if TYPE_CHECKING:
    from dataset_scripts.sources.base import Source
    from llaso_common.tasks import Task

CORPORA = ("align", "instruct", "eval")
STAGES = ("corpora", "backbones", "stage 1", "stage 2", "evaluation", "report")
REAL_STAGES = ("backbones", "corpora", *STAGES[2:])
"""With real parts: a part that cannot be fetched is known before anything is built."""
SOURCES_FILE = "sources.yaml"
SOURCES_COMMENT = "# What the corpora beside this file were built from: `llaso data build CORPUS --seed {seed}`."
REPORT_SECONDS = 10.0
"""Between two lines of progress."""


def quickstart(out: str | Path, options: Options, *, ignore_gate: bool = False) -> int:
    """Run the stages that are not finished yet.

    Args:
        out: folder for corpora, models and report.
        options: of the quickstart.
        ignore_gate: go on to Stage 2 even if Stage 1 did not pass its gate; the size "minimum" always does.

    Returns:
        0, or 1 if Stage 1 did not pass its gate.

    Raises:
        ValueError: `out` holds a quickstart with other options, or an input cannot be used.
    """
    run = _Pipeline(Path(out), options)
    if options.encoder:
        run.stage("backbones", run.fetch_backbones)
        run.stage("corpora", run.build_corpora)
    else:
        run.stage("corpora", run.build_corpora)
        run.stage("backbones", run.train_backbones)
    run.stage("stage 1", run.align)
    if not run.gate_passed():
        go_on = ignore_gate or options.size == "minimum"
        print(run.gate_message(go_on))
        if not go_on:
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
        self.record_file = out / RECORD
        self.record: dict[str, Any] = {"options": asdict(options), "done": {}}
        if self.record_file.exists():
            self.record = json.loads(self.record_file.read_text())
            self.record["options"] = Options.recorded(self.record["options"])
            if self.record["options"] != asdict(options):
                raise ValueError(
                    f"{out} holds a quickstart with other options ({self.record['options']}); "
                    "name another folder with --out, or delete this one"
                )
        out.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run a stage unless it is done, and record its result and time."""
        stages = REAL_STAGES if self.options.encoder else STAGES
        label = f"[{1 + stages.index(name)}/{len(stages)}] {name}"
        if name in self.record["done"]:
            print(f"{label}: done before")
            return
        print(f"{label}", flush=True)
        interrupted = self.record.setdefault("interrupted", {})
        started = time.perf_counter() - interrupted.get(name, 0.0)
        try:
            outcome = work()
        except (KeyboardInterrupt, SystemExit):
            interrupted[name] = round(time.perf_counter() - started, 1)
            self.write_record()
            raise
        self.record["done"][name] = {"seconds": round(time.perf_counter() - started, 1), **outcome}
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        self.record["peak_memory_mb"] = max(self.record.get("peak_memory_mb", 0), round(max(peaks) / 1024))
        self.write_record()
        print(f"{label}: {time_in_words(self.record['done'][name]['seconds'])}", flush=True)

    def write_record(self) -> None:
        """Write the options, and what came of each stage."""
        write_atomically(self.record_file, json.dumps(self.record, indent=1, ensure_ascii=False))

    # --- corpora ----------------------------------------------------------------------------------------------------

    def build_corpora(self) -> dict[str, Any]:
        """Build small versions of LLaSO-Align, -Instruct and -Eval."""
        from dataset_scripts.build import build
        from dataset_scripts.sources import quickstart as synthetic

        real = bool(self.options.speech)
        size = self.size
        counts = {"utterances": size.utterances, "notes": size.notes, "questions": size.questions}
        sources: list[Source] = []
        tasks: Sequence[Task] = ()
        if self.options.synthetic:
            sources.append(synthetic.SOURCE.at(".", **counts, seed=self.options.seed, real=real))
        if real:
            recorded, tasks = self.recordings()
            sources += recorded
        rows = {}
        settings: dict[str, Any] = {
            "eval_rows": size.eval_rows,
            "validation_rows": size.validation_rows,
            "rows_per_shard": 500,
            "voices": {split: list(pool) for split, pool in synthetic.voices().items()},
        }
        if not real:
            options = {"path": ".", **counts, "seed": self.options.seed, "real": False}
            text = yaml.safe_dump({"sources": {synthetic.SOURCE.name: options}, **settings}, sort_keys=False)
            write_atomically(self.out / SOURCES_FILE, f"{SOURCES_COMMENT.format(seed=self.options.seed)}\n{text}")
        for corpus in CORPORA:
            build(
                corpus,
                sources,
                self.corpus(corpus),
                seed=self.options.seed,
                clips=self.out / "clips",
                workers=os.cpu_count() or 1,
                **settings,
                tasks=tasks,
                against=[self.corpus(other) for other in CORPORA[:2]] if corpus == "eval" else (),
                progress=progress_report(f"      llaso-{corpus}: rows", _say, REPORT_SECONDS),
            )
            rows[corpus] = json.loads((self.corpus(corpus) / "build.json").read_text())["rows"]
        return {"rows": rows}

    def recordings(self) -> tuple[list[Source], Sequence[Task]]:
        """Return the sources of `speech`, and tasks of their own.

        `speech` is a sources file, spoken digits, or data whose columns are guessed. For real parts, all that a rule
        can ask of a transcript is asked, too.
        """
        from dataset_scripts import inspect_source, sources_file
        from dataset_scripts.sources import fsdd

        from .speech_sources import speech_sources

        said = Path(self.options.speech).expanduser()
        if fsdd.is_in(said):
            return [fsdd.SOURCE.at(said, strings=2)], ()
        if said.suffix in (".yaml", ".yml"):
            file = said
        elif self.options.encoder:
            file = speech_sources(self.options.speech, self.out / "speech")
        else:
            file = self.out / "speech-sources.yaml"
            if not file.exists():
                write_atomically(file, inspect_source.inspect(self.options.speech))
        if file != said:
            print(f"      {said}: its columns are guessed, see {file}")
        found = sources_file.read(file)
        return found.sources, found.settings.get("tasks", ())

    def corpus(self, name: str) -> Path:
        """Return the folder of a corpus."""
        return self.out / f"llaso-{name}"

    # --- backbones --------------------------------------------------------------------------------------------------

    def fetch_backbones(self) -> dict[str, Any]:
        """Fetch the real encoder and language model."""
        from .real_parts import fetch

        return {"fetched": fetch(self.options.encoder, self.options.llm, lambda line: _say(f"      {line}"))}

    def train_backbones(self) -> dict[str, Any]:
        """Train the small encoder and language model, on half the cores each."""
        from .stand_ins import train_stand_ins

        train_stand_ins(self.out, self.size, self.options.seed, lambda line: _say(f"      {line}"))
        return {}

    # --- the two training stages ------------------------------------------------------------------------------------

    def align(self) -> dict[str, Any]:
        """Train Stage 1: the projector, on ASR."""
        encoder = self.options.encoder or str(self.out / "backbones" / "encoder")
        llm = self.options.llm or str(self.out / "backbones" / "llm")
        return self.train(
            self.options.recipes[0],
            f"model.encoder={encoder}",
            f"model.llm={llm}",
            f"data.path={self.corpus('align')}",
            f"out={self.out / 'stage1'}",
        )

    def instruct(self) -> dict[str, Any]:
        """Train Stage 2: the projector and the language model, on all tasks."""
        return self.train(
            self.options.recipes[1],
            f"model.checkpoint={self.out / 'stage1'}",
            f"data.path={self.corpus('instruct')}",
            f"out={self.model}",
        )

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.out / (REAL_MODEL if self.options.encoder else STAND_IN_MODEL)

    def train(self, recipe: str, *overrides: str) -> dict[str, Any]:
        """Train one stage by its recipe."""
        from ..training.run.train import train

        seeded = (*overrides, f"seed={self.options.seed}", *self.size.overrides)
        return asdict(train(recipe, seeded, report=lambda line: print(f"      {line}", flush=True)))

    def gate_passed(self) -> bool:
        """Return whether Stage 1's word error rate on held-out rows is below the recipe's gate."""
        result = self.record["done"]["stage 1"]
        return result["wer"] is not None and result["wer"] < result["gate_wer"]

    def gate_message(self, go_on: bool) -> str:
        """Return the message for a Stage 1 that did not pass its gate, with the remedy unless the run goes on."""
        result = self.record["done"]["stage 1"]
        if result["wer"] is None:
            reason = "Stage 1 has no word error rate: the corpus holds out no transcripts."
            remedy = "Name held-out speakers in the sources file (`split`, or a larger `eval_share`)"
        else:
            reason = (
                f"Stage 1 did not pass its gate: WER {result['wer']:.3f} on {result['wer_words']} held-out words, "
                f"{result['gate_wer']:.2f} wanted. A model that mishears cannot follow instructions."
            )
            remedy = f"See {self.out / 'stage1' / 'loss.png'}, train longer"
        return f"{reason} " + ("Going on." if go_on else f"{remedy}, or go on all the same with --ignore-gate.")

    def stage_1_line(self) -> str:
        """Return what Stage 1 came to."""
        result = self.record["done"]["stage 1"]
        if result["wer"] is None:
            return "stage 1     no held-out rows"
        return f"stage 1     WER {result['wer']:.3f} on held-out voices and sentences ({result['wer_words']} words)"

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Generate the answers to LLaSO-Eval; transcripts of an aligned model are decoded jointly."""
        from eval_suite.generate import generate
        from modeling_llaso import LlasoConfig

        from ..alignment.joint_answers import JointBackend, JointSettings

        settings = JointSettings(max_new_tokens=self.size.answer_tokens)  # `generate` is given the same below
        aligned = LlasoConfig.from_pretrained(self.model).ctc_alignment is not None
        generate(
            JointBackend(self.model, settings) if aligned else self.model,
            self.corpus("eval"),
            self.out / "predictions",
            batch_size=32,
            max_new_tokens=self.size.answer_tokens,
            overwrite=True,
        )
        return {}

    def report(self) -> dict[str, Any]:
        """Write the scores, the report and the model's card, and return what the last lines quote."""
        from eval_suite.report import write_report
        from eval_suite.score import score_rows

        from ..publishing.model_card import write_card

        scored = score_rows(self.out / "predictions", protocol="strict", system=self.model.name)
        scored.write(self.out / "scores.json")
        write_report(
            [scored], self.out / "report", data=self.corpus("eval"), title="LLaSO quickstart", seed=self.options.seed
        )
        (self.model / "README.md").write_text(write_card(self.out), encoding="utf-8")
        return {
            "held_out": self.held_out_recording(),
            "real_speech": _real_speech(scored.content),
            "text_skill": self.text_skill() if self.options.encoder else [],
        }

    def text_skill(self) -> list[str]:
        """Measure the language model's text skill before and after, write every answer, and return a line each."""
        from eval_suite import text_skill
        from modeling_llaso.loading import load_for_text

        names = {"before": self.options.llm, "after": str(self.model)}
        chosen = {when: text_skill.measure(*load_for_text(name)) for when, name in names.items()}
        records = {when: text_skill.record(names[when], found) for when, found in chosen.items()}
        test = text_skill.compare(chosen["before"], chosen["after"])
        write_atomically(
            self.out / "text_skill.json", json.dumps({**records, "test": test}, indent=1, ensure_ascii=False)
        )
        return [
            f"{made['accuracy']:.2f} [{made['low']:.2f}, {made['high']:.2f}] of {made['n']} questions {when} training"
            for when, made in records.items()
        ]

    def held_out_recording(self) -> dict[str, str]:
        """Pick one transcribed recording of the evaluation, preferably of a person, and write its audio to a file.

        Returns:
            The file, its transcript, what the model heard and the speaker; empty if the evaluation has no transcripts.
        """
        rows = rows_of(self.corpus("eval"), "test", ("id", "task", "target", "speaker", "audio"))
        spoken = [row for row in rows if row["task"] == "ASR"]
        if not spoken:
            return {}
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
        held_out = []
        if heard:
            whose = f"speaker {heard['speaker']}" if heard["speaker"] else "a synthetic voice"
            held_out = [
                "",
                f"held out, {whose}: {heard['file']}",
                f"  said   {heard['said']}",
                f"  heard  {heard['heard']}",
            ]
        seconds = sum(stage["seconds"] for stage in done.values())
        real = [f"real speech {line}" for line in done["report"]["real_speech"]]
        real += [f"text skill  {line}" for line in done["report"].get("text_skill", ())]
        return "\n".join(
            (
                (self.out / "report" / "report.md").read_text(encoding="utf-8").split("\n## ")[0].strip(),
                "",
                f"corpora     {', '.join(str(self.corpus(name)) for name in CORPORA)}",
                f"model       {self.model}",
                f"report      {self.out / 'report' / 'index.html'} (and report.json, radar.png)",
                f"time        {time_in_words(seconds)} of work; {size:,} MB of memory at most in one process",
                self.stage_1_line(),
                *real,
                *held_out,
                "",
                "Load it:",
                "  import modeling_llaso",
                "  from transformers import AutoModelForMultimodalLM, AutoProcessor",
                f"  model, processor = (auto.from_pretrained({str(self.model)!r}) for auto in "
                "(AutoModelForMultimodalLM, AutoProcessor))",
            )
        )


def _real_speech(scores: Mapping[str, Any]) -> list[str]:
    """Return the word error rate of each source of recordings, on speakers kept from all training.

    Of spoken digits it is unnormalized: Whisper's normalizer writes "two five" as the one word "25".
    """
    lines = []
    for name, entry in scores["files"].items():
        source, asr, modality = name.partition("_ASR_")
        if not asr or not modality.startswith("text_audio") or source == "quickstart":
            continue
        rate = entry["metrics"]["wer_raw" if source == "fsdd" else "wer"]
        lines.append(
            f"{source}: WER {rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}], {rate['n']} recordings of "
            "speakers kept from training"
        )
    return lines


def _say(line: str) -> None:
    print(line, flush=True)
