"""Publishing a finished run: weights, code, processor, card, results, recipes and data records, in one commit.

The `evaluate` module is published as the Space that `evaluate.load` reads; evaluate's own `push_to_hub` does not work
with current clients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import eval_suite
from llaso_common.hub_errors import plain_errors

from .finished_run import FinishedRun, is_hub_id, read_json, read_run
from .hub_results import eval_results
from .hub_upload import Destination, UploadResult, upload
from .model_card import write_card

CODE = ("compatibility_llaso.py", "configuration_llaso.py", "modeling_llaso.py", "processing_llaso.py")
"""Code files that `trust_remote_code=True` loads."""
NEEDED = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("chat_template.jinja", "special_tokens_map.json", "preprocessor_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MODULE = "llaso_eval"


def publish(
    run: str | Path,
    to: Destination,
    *,
    report: str | Path | None = None,
    evaluated_on: str | Path | None = None,
    license: str | None = None,
) -> UploadResult:
    """Publish a trained model with its card, results, recipes and data records.

    Args:
        run: a quickstart's folder, or the `out` of a finished `llaso train`.
        to: the repository.
        report: folder with the model's report.json; required after `llaso train`.
        evaluated_on: folder or Hub id of the evaluation corpus; required likewise.
        license: the Hub's name of the weights' licence; by default that of the language model on the Hub.

    Returns:
        The repository's URL and the uploaded files; a second call uploads nothing.

    Raises:
        ValueError: the run is not finished, its licence is unknown, or files of the repository would be overwritten.
        OSError: the Hub refuses or cannot be reached; see `hub_upload.upload`.
    """
    with plain_errors(to.repo_id):
        finished = read_run(run, report=report, evaluated_on=evaluated_on)
        terms = _license(finished, license, to.token)
    model = finished.model.name
    return upload(collect(finished, to, terms), to, f"{model}, trained and measured by LLaSO's `llaso` command")


def collect(run: FinishedRun, to: Destination, license: str | dict[str, str]) -> dict[str, Path | bytes]:
    """Return the published files of a run, by name in the repository.

    Raises:
        ValueError: a file of the checkpoint is missing.
    """
    files: dict[str, Path | bytes] = dict(_checkpoint(run.model))
    files["README.md"] = write_card(run, to.repo_id, license).encode()
    for name in ("report.json", "report.md", "radar.png"):
        if (run.report_folder / name).is_file():
            files[f"report/{name}"] = run.report_folder / name
    for number, stage in enumerate(run.stages, 1):
        folder = f"training/{number}-{stage.folder.name}"
        files[f"{folder}/recipe.yaml"] = yaml.safe_dump(stage.portable_recipe(), sort_keys=False).encode()
        files[f"{folder}/training.json"] = _json(stage.portable_result())
        if (stage.folder / "loss.png").is_file():
            files[f"{folder}/loss.png"] = stage.folder / "loss.png"
    files["training/data.json"] = _json(
        [
            {"name": corpus.name, "repo_id": corpus.repo_id, "revision": corpus.revision}
            | {key: corpus.built[key] for key in ("fingerprint", "seed", "rows", "hours", "sources")}
            for corpus in run.corpora
        ]
    )
    branch = to.revision or "main"
    if entries := eval_results(run, f"https://huggingface.co/{to.repo_id}/blob/{branch}/report/report.json"):
        files[".eval_results/llaso-eval.yaml"] = yaml.safe_dump(entries, sort_keys=False).encode()
    return files


def publish_module(to: Destination) -> UploadResult:
    """Publish LLaSO-Eval's `evaluate` module as a Space.

    Args:
        to: the repository. Its name must be llaso_eval, because `evaluate.load("owner/name")` loads name.py from it.

    Raises:
        ValueError: the repository has another name.
        OSError: the Hub refuses or cannot be reached.
    """
    if to.repo_id.rpartition("/")[2] != MODULE:
        raise ValueError(
            f"{to.repo_id}: call it OWNER/{MODULE}; evaluate.load looks for a file of the repository's name"
        )
    folder = Path(eval_suite.__path__[0]) / MODULE
    card = (folder / "README.md").read_text(encoding="utf-8")
    files: dict[str, Path | bytes] = {
        "README.md": card.replace('evaluate.load("eval_suite/llaso_eval")', f'evaluate.load("{to.repo_id}")').encode(),
        f"{MODULE}.py": folder / f"{MODULE}.py",
        "index.html": Path(__file__).parent / "templates" / "module_page.html",
    }
    return upload(files, to, "LLaSO-Eval's metrics")


def _checkpoint(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield names and paths of a checkpoint's files."""
    weights = [WEIGHTS]
    if (folder / INDEX).is_file():
        weights = [INDEX, *sorted(set(read_json(folder / INDEX)["weight_map"].values()))]
    for name in (*NEEDED, *CODE, *weights):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: {name} is missing; write the checkpoint again with save_pretrained of model and processor"
            )
        yield name, folder / name
    for name in OPTIONAL:
        if (folder / name).is_file():
            yield name, folder / name


def _license(run: FinishedRun, given: str | None, token: str | None) -> str | dict[str, str]:
    """Return the licence of the weights, as a name or as the card's metadata.

    Raises:
        ValueError: the licence is unknown.
    """
    if given:
        return given
    if run.stand_ins:
        return "apache-2.0"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    start = run.stages[0].recipe["model"]
    language_model = start["checkpoint"] or start["llm"]
    if is_hub_id(language_model):
        try:
            card = HfApi(token=token).model_info(language_model).card_data
        except RepositoryNotFoundError:
            card = None
        if card is not None and card.get("license"):
            return {key: card[key] for key in ("license", "license_name", "license_link") if card.get(key)}
    raise ValueError(
        f"{run.model}: under which licence? The language model it started from does not say on the Hub; name it with "
        "--license, e.g. --license llama3.2"
    )


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
