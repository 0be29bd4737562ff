"""Reading a finished run from its files: the model, its training stages, their corpora and the report.

A run is a folder of `llaso quickstart` or of `llaso train`. Each recipe names its corpora and the checkpoint that it
started from, so earlier stages are found by following these names.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..quickstart.options import RECORD, Options

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
STAND_IN_MODEL, REAL_MODEL = "llaso-tiny", "llaso-small"
"""The model in a quickstart's folder: of stand-ins, and of real pretrained parts."""


@dataclass(frozen=True)
class CorpusRecord:
    """A corpus that a model was trained or evaluated on.

    Attributes:
        name: Hub id, or the name of its folder.
        built: content of its build.json.
        leakage: content of its leakage.json; empty if there is none.
        repo_id: Hub id of the published corpus, if it is published.
        revision: commit of the published corpus, if it was recorded.
    """

    name: str
    built: Mapping[str, Any]
    leakage: Mapping[str, Any]
    repo_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class TrainingStage:
    """One training run.

    Attributes:
        folder: its output folder.
        recipe: content of its recipe.yaml.
        result: content of its training.json.
        corpus: what it was trained on.
    """

    folder: Path
    recipe: Mapping[str, Any]
    result: Mapping[str, Any]
    corpus: CorpusRecord

    @property
    def chats(self) -> str:
        """Hub id, or the name of the folder, of the rows without audio that were mixed in; empty without any."""
        return public_name(self.recipe["data"]["text_path"] or "")

    def portable_recipe(self) -> dict[str, Any]:
        """Return the recipe with names instead of this machine's paths."""
        recipe: dict[str, Any] = copy.deepcopy(dict(self.recipe))
        for key in ("encoder", "llm", "checkpoint"):
            if recipe["model"][key]:
                recipe["model"][key] = public_name(recipe["model"][key])
        recipe["compute"]["encoder_cache"] = None
        recipe["data"]["path"] = self.corpus.repo_id or self.corpus.name
        recipe["data"]["text_path"] = self.chats or None
        recipe["out"] = Path(recipe["out"]).name
        return recipe

    def portable_result(self) -> dict[str, Any]:
        """Return the result with names instead of this machine's paths."""
        return {**self.result, "out": Path(self.result["out"]).name}


@dataclass(frozen=True)
class FinishedRun:
    """A model with its history.

    Attributes:
        model: folder of the checkpoint.
        config: its config.json.
        stages: training stages, first to last.
        base_models: Hub ids that the first stage started from.
        stand_ins: whether the first stage started from small backbones that the quickstart trained from scratch.
        report_folder: folder of its report.
        report: content of report.json.
        system: index of this model among the report's systems.
        evaluation: the evaluation corpus.
    """

    model: Path
    config: Mapping[str, Any]
    stages: tuple[TrainingStage, ...]
    base_models: tuple[str, ...]
    stand_ins: bool
    report_folder: Path
    report: Mapping[str, Any]
    system: int
    evaluation: CorpusRecord

    @property
    def corpora(self) -> list[CorpusRecord]:
        """Return all corpora, each once: those of the stages in order, then the evaluation corpus."""
        every = [stage.corpus for stage in self.stages] + [self.evaluation]
        return list({corpus.name: corpus for corpus in every}.values())


def read_run(
    folder: str | Path, *, report: str | Path | None = None, evaluated_on: str | Path | None = None
) -> FinishedRun:
    """Read a finished run.

    Args:
        folder: folder of `llaso quickstart`, or the `out` of `llaso train`.
        report: folder with the model's report.json; required after `llaso train`, found after a quickstart.
        evaluated_on: folder or Hub id of the evaluation corpus; required likewise.

    Raises:
        ValueError: something is missing; the message names it and the remedy.
    """
    folder = Path(folder)
    stand_ins = False
    if (folder / RECORD).is_file():
        stand_ins = not Options.of_folder(folder).encoder
        report, evaluated_on = report or folder / "report", evaluated_on or folder / "llaso-eval"
        folder = folder / (STAND_IN_MODEL if stand_ins else REAL_MODEL)
    stages = _read_stages(folder)
    if report is None or evaluated_on is None:
        raise ValueError(
            f"{folder}: name its report (--report DIR, written by `llaso eval report`) and the corpus that the report "
            "is about (--evaluated-on DIR_OR_ID)"
        )
    content = read_json(Path(report) / "report.json", "run `llaso eval report` first")
    first = stages[0].recipe["model"]
    started_from = [first["checkpoint"]] if first["checkpoint"] else [first["encoder"], first["llm"]]
    return FinishedRun(
        model=folder,
        config=read_json(folder / "config.json"),
        stages=stages,
        base_models=tuple(name for name in started_from if is_hub_id(name)),
        stand_ins=stand_ins,
        report_folder=Path(report),
        report=content,
        system=_own_system(content, folder.name, Path(report)),
        evaluation=read_corpus(evaluated_on, near=folder.parent),
    )


def _read_stages(folder: Path) -> tuple[TrainingStage, ...]:
    """Read the stages of a run, ending with the one that wrote the folder."""
    if not (folder / "recipe.yaml").is_file() or not (folder / "training.json").is_file():
        raise ValueError(
            f"{folder} is no finished run: neither quickstart.json nor recipe.yaml and training.json are there. Name "
            "the folder of `llaso quickstart`, or the `out` of a `llaso train` that has ended"
        )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    data, checkpoint = recipe["data"], recipe["model"]["checkpoint"]
    corpus = read_corpus(data["path"], near=folder.parent, revision=data["revision"])
    stage = TrainingStage(folder, recipe, read_json(folder / "training.json"), corpus)
    before = _local(checkpoint, folder.parent) if checkpoint else None
    return (*(_read_stages(before) if before else ()), stage)


def _own_system(report: Mapping[str, Any], name: str, folder: Path) -> int:
    """Return the index of the model among a report's systems: the only one, or the one of its name."""
    names = [system["name"] for system in report["systems"]]
    if len(names) == 1:
        return 0
    if name not in names:
        raise ValueError(f"{folder}: the report is about {', '.join(names)}; none of them is called {name}")
    return names.index(name)


def read_corpus(path: str | Path, *, near: Path, revision: str | None = None) -> CorpusRecord:
    """Read the records of a corpus.

    Args:
        path: folder as a recipe names it, or Hub id.
        near: folder that is searched first for a folder of that name, because runs are moved as a whole.
        revision: revision on the Hub.

    Raises:
        ValueError: the corpus does not exist, or was not built by `llaso data build`.
    """
    if folder := _local(str(path), near):
        built = read_json(folder / "build.json", "finish it with `llaso data build`")
        leakage = folder / "leakage.json"
        published = folder / "published.json"
        place = read_json(published) if published.is_file() else {}
        if place.get("fingerprint") != built["fingerprint"]:  # rebuilt since it was published
            place = {}
        return CorpusRecord(
            folder.name,
            built,
            read_json(leakage) if leakage.is_file() else {},
            place.get("repo_id"),
            place.get("revision"),
        )
    if not is_hub_id(str(path)):
        raise ValueError(f"{path}: there is no such corpus, neither here nor in {near}")
    return _corpus_on_hub(str(path), revision)


def _corpus_on_hub(repo_id: str, revision: str | None) -> CorpusRecord:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

    def read(name: str) -> Any:
        return read_json(Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision)))

    try:
        return CorpusRecord(repo_id, read("build.json"), read("leakage.json"), repo_id, revision)
    except (RemoteEntryNotFoundError, RepositoryNotFoundError) as error:
        raise ValueError(f"{repo_id}: neither a folder nor a dataset of `llaso data publish` on the Hub") from error


def _local(path: str, near: Path) -> Path | None:
    return next((folder for folder in (near / Path(path).name, Path(path)) if folder.is_dir()), None)


def is_hub_id(name: str) -> bool:
    """Return whether a name is a Hub id, and not a local folder."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """Return a Hub id unchanged, and the last part of a folder's path."""
    return name if is_hub_id(name) else Path(name).name


def read_json(file: Path, remedy: str = "the run is not finished") -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is missing or not valid JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: {remedy}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: {error.msg}") from None
