"""Writing the model card of a finished run: its parts, training data and scores, all figures read from files.

The card is Markdown with the Hub's metadata, for the README.md beside the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from dataset_scripts.leakage import shared_by_nature
from modeling_llaso import TRIED_TRANSFORMERS

from .finished_run import FinishedRun, TrainingStage, public_name, read_run
from .hub_results import confidence, model_index, results_of

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
ENCODER_STEP = 20
"""Milliseconds of audio per vector of a Whisper encoder."""
PROTOCOLS = {
    "strict": "every row counts and no answer is guessed.",
    "paper": "the authors' own arithmetic, faults included.",
}


@dataclass(frozen=True)
class CardWording:
    """The sentences that differ between quickstart models and others."""

    title: str
    use: str
    limits: str


QUICKSTART = CardWording(
    "LLaSO, trained by the quickstart",
    "To see every stage run, to try code against a real checkpoint, and to start experiments from. It knows a\n"
    "small spoken world, in English. It is no general speech recognizer.",
    "It was never shown speech outside its small world, other languages, or more than a few seconds at a time.\n"
    "Gender and accent are those of synthetic voices; nothing it says of a person's voice means anything.",
)
GENERAL = CardWording(
    "A LLaSO model",
    "Research on speech and audio instructions in English: a recording and an instruction, written or spoken, to be\n"
    "answered in text. It is not meant for decisions about people.",
    "It knows what the sources above hold, in English. What it says of a speaker (gender, age, accent, emotion) is a\n"
    "guess from the voice, and can be wrong in ways that differ between groups of people.",
)


def write_card(
    run: str | Path | FinishedRun, repo_id: str | None = None, license: str | dict[str, str] | None = None
) -> str:
    """Return the model card of a finished run.

    Args:
        run: a quickstart's folder, or a run read by `read_run`.
        repo_id: Hub id of the model; without one, the card shows how to load the local folder.
        license: the Hub's name of the weights' licence, or a mapping with license, license_name and license_link.
            By default the card states no licence, unless the quickstart trained the backbones from scratch.

    Raises:
        ValueError: the run is not finished.
    """
    if not isinstance(run, FinishedRun):
        run = read_run(run)
    wording = QUICKSTART if run.stand_ins else GENERAL
    name = (repo_id or run.model.name).rpartition("/")[2]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=yaml.safe_dump(_metadata(run, name, license), sort_keys=False, allow_unicode=True).strip(),
        title=wording.title,
        backbones=_backbones(run),
        parts=_parts(run),
        use=wording.use,
        corpora=_corpora(run),
        sources=_sources(run),
        leakage=_leakage(run),
        stages=_stages(run),
        evaluation=run.evaluation.repo_id or run.evaluation.name,
        protocol=run.report["protocol"],
        protocol_meaning=PROTOCOLS[run.report["protocol"]],
        confidence=confidence(run),
        scores=_scores(run),
        limits="\n".join((wording.limits, *_unproven(run))),
        path=repo_id or run.model.name,
        transformers=TRIED_TRANSFORMERS,
    )


def _metadata(run: FinishedRun, name: str, license: str | dict[str, str] | None) -> dict[str, Any]:
    """Return the card's metadata (huggingface.co/docs/hub/model-cards)."""
    if license is None and run.stand_ins:
        license = "apache-2.0"
    terms = {"license": license} if isinstance(license, str) else license or {}
    datasets = list(dict.fromkeys(stage.corpus.repo_id for stage in run.stages if stage.corpus.repo_id))
    return {
        "library_name": "transformers",
        **terms,
        "language": ["en"],
        "pipeline_tag": "audio-text-to-text",
        "tags": ["llaso", "speech", "audio"],
        **({"base_model": list(run.base_models)} if run.base_models else {}),
        **({"datasets": datasets} if datasets else {}),
        "model-index": model_index(run, name),
    }


def _backbones(run: FinishedRun) -> str:
    if run.stand_ins:
        return (
            "a small\nWhisper-architecture encoder and a small Llama, both trained from scratch, standing in for "
            "whisper-large-v3 and\nLlama-3.2-3B-Instruct"
        )
    first = run.stages[0].recipe["model"]
    if first["checkpoint"]:
        return f"the parts of\n`{public_name(first['checkpoint'])}`, from which it went on"
    return f"\n`{public_name(first['encoder'])}` and `{public_name(first['llm'])}`"


def _parts(run: FinishedRun) -> str:
    encoder, llm = run.config["audio_config"], run.config["text_config"]
    sizes = {
        "encoder": f"Whisper, {encoder['encoder_layers']} layers of width {encoder['d_model']}",
        "projector": f"linear, GELU, linear; a token every {ENCODER_STEP * run.config['projector_stride']} ms",
        "llm": f"{llm['model_type']}, {llm['num_hidden_layers']} layers of width {llm['hidden_size']}",
    }
    rows = [(part, size, _training(run, part)) for part, size in sizes.items()]
    return _table(("part", "size", "training"), [*rows, ("audio padding", f"`{run.config['audio_padding']}`", "")])


def _training(run: FinishedRun, part: str) -> str:
    """Return in which stages a part was trained, and how."""
    stages = [
        f"{number}{f' ({way})' if (way := _way(stage.recipe, part)) else ''}"
        for number, stage in enumerate(run.stages, 1)
        if part in stage.recipe["train"]
    ]
    return f"trained in stage {' and '.join(stages)}" if stages else "frozen"


def _way(recipe: Mapping[str, Any], part: str) -> str:
    """Return how a part learned; empty: as a whole, or not at all. Recipes of earlier versions lack some settings."""
    section = {"llm": "lora", "encoder": "encoder_lora"}.get(part)
    if section and (rank := recipe.get(section, {}).get("rank")):
        return f"LoRA, rank {rank}"
    if part == "encoder" and (layers := recipe.get("encoder_last_layers")):
        return f"its last {layers} layers" if layers > 1 else "its last layer"
    return ""


def _corpora(run: FinishedRun) -> str:
    rows = []
    for corpus in run.corpora:
        built = corpus.built
        place = "not published"
        if corpus.repo_id:
            at = f" at `{corpus.revision}`" if corpus.revision else ", revision not recorded"
            place = f"[{corpus.repo_id}](https://huggingface.co/datasets/{corpus.repo_id}){at}"
        rows.append(
            (corpus.name, f"{built['rows']:,}", f"{built['hours']:.2f}", f"`{built['fingerprint'][:12]}`", place)
        )
    return _table(("corpus", "rows", "hours", "fingerprint", "on the Hub"), rows)


def _sources(run: FinishedRun) -> str:
    """Return the table of sources and their licences."""
    rows: dict[str, tuple[str, ...]] = {}
    for corpus in run.corpora:
        present = {counted.split("/")[0] for counted in corpus.built["counts"]}
        for name, source in corpus.built["sources"].items():
            if name in present:
                rows.setdefault(name, (source["title"], source["license"], source["homepage"]))
    return _table(("source", "licence", "home"), list(rows.values()))


def _leakage(run: FinishedRun) -> str:
    """Return the result of the leakage check, or that a corpus was not checked."""
    leakage = run.evaluation.leakage
    compared = {entry["fingerprint"]: entry for entry in leakage.get("compared", {}).values()}
    trained = [stage.corpus for stage in run.stages]
    if not all(corpus.built["fingerprint"] in compared for corpus in trained):
        return "Training and evaluation were not compared for shared rows."
    if not leakage["clean"]:
        return f"**Training and evaluation share rows**: see `leakage.json` of {run.evaluation.name}."
    by_nature = shared_by_nature(leakage)
    rows = sum(compared[fingerprint]["rows_checked"] for fingerprint in {c.built["fingerprint"] for c in trained})
    return (
        f"The evaluation shares no recording, speaker or sentence with training: {rows:,} rows were compared\n"
        f"(`leakage.json` of {run.evaluation.name}){by_nature}."
    )


def _stages(run: FinishedRun) -> str:
    head = ("stage", "trains", "on", "steps", "learning rate", "final loss", "WER (validation words)", "gate")
    return _table(head, [tuple(_stage(number, stage)) for number, stage in enumerate(run.stages, 1)])


def _trained(recipe: Mapping[str, Any]) -> str:
    """Return the parts that learned, and how."""
    ways = {part: _way(recipe, part) for part in recipe["train"]}
    return ", ".join(f"{part} ({way})" if way else part for part, way in ways.items())


def _rates(recipe: Mapping[str, Any]) -> str:
    """Return the learning rate, and those of the parts that have their own."""
    optimizer = recipe["optimizer"]
    own = {part: optimizer.get(part, {}).get("learning_rate") for part in recipe["train"]}
    return ", ".join(
        [f"{optimizer['learning_rate']:g}", *(f"{part} {rate:g}" for part, rate in own.items() if rate is not None)]
    )


def _stage(number: int, stage: TrainingStage) -> Iterator[str]:
    recipe, result = stage.recipe, stage.result
    yield f"{number}: {stage.folder.name}"
    yield _trained(recipe)
    yield stage.corpus.name + (f", and {stage.chats} (text alone)" if stage.chats else "")
    yield f"{result['steps']:,}"
    yield _rates(recipe)
    yield f"{result['loss']:.3f}"
    yield "–" if result["wer"] is None else f"{result['wer']:.3f} ({result['wer_words']:,})"
    yield "–" if result["gate_wer"] is None else f"{result['gate_wer']:.2f}"


def _scores(run: FinishedRun) -> str:
    arrows = {"lower": " ↓", "higher": " ↑"}
    rows = [
        (
            f"{result.task} {result.name}",
            result.metric + arrows[result.better],
            f"{result.value:.3f}",
            "–" if result.low is None else f"{result.low:.3f} to {result.high:.3f}",
            "–" if result.baseline is None else f"{result.baseline:.3f}",
            f"{result.n:,}",
        )
        for result in results_of(run)
    ]
    return _table(("task", "metric", "score", f"{confidence(run)} interval", "baseline", "rows"), rows)


def _unproven(run: FinishedRun) -> Iterator[str]:
    """Yield a sentence about tasks that are not clearly better than their baseline."""
    behind = [f"{result.name} ({result.task})" for result in results_of(run) if result.verdict != "above"]
    if behind:
        yield f"Not shown to beat its baseline, since the interval is not above it: {', '.join(behind)}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
