"""Publishing against a real HTTP server with the real client: what goes up, what never does, and what is read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard
from support.hub_server import HubServer, connected, serve
from support.tiny_corpus import SOURCE, VOICES, write_recordings

from dataset_scripts.build import build
from dataset_scripts.release_export import export_release
from dataset_scripts.release_import import import_release
from dataset_scripts.validate import validate
from llaso.cli import main
from llaso_common.folder_lock import LOCK
from llaso_common.schema import FEATURES

SETTINGS = {"voices": VOICES, "rows_per_shard": 20, "eval_rows": 30, "validation_rows": 10}
REPO = "datasets/owner/llaso-instruct"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaSO-Instruct of the tiny source, validated, not to be changed."""
    root = tmp_path_factory.mktemp("built")
    source = SOURCE.at(write_recordings(root / "tiny"), notes=12, questions=6)
    out = build("instruct", [source], root / "llaso-instruct", clips=root / "clips", **SETTINGS)
    assert validate(out)["found"] == 0
    return out


@pytest.fixture
def corpus(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / built.name))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub that this process speaks to."""
    with serve(tmp_path / "hub") as server, connected(server, tmp_path / "home"):
        yield server


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(file).to_pylist()]


def published_rows(files: dict[str, bytes]) -> list[dict]:
    shards = [data for path, data in sorted(files.items()) if path.endswith(".parquet")]
    return [row for data in shards for row in pq.read_table(pa.BufferReader(data)).to_pylist()]


def downloaded(files: dict[str, bytes], folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def python(hub: HubServer, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, whose Hub is the local one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **kept, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_local", "HF_HOME": str(tmp_path / "away"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=180)


class Hasty:
    """Stands in for the module `time`, without waiting."""

    def sleep(self, seconds: float) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


READ = """
import json, sys
from datasets import load_dataset
for config in sys.argv[1:]:
    name, split = config.split(":")
    rows = load_dataset("owner/llaso-instruct", name, split=split, streaming=True)
    assert type(rows.features["audio"].feature).__name__ == "Audio"
    print(json.dumps(sorted([r["id"], r["messages"], r["target"], r["audio"][0]["bytes"].hex()] for r in rows)))
"""


@pytest.mark.slow
def test_publish_is_cut_goes_on_and_is_read(
    corpus: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("huggingface_hub.utils._http.time", Hasty())  # else it waits half a minute between its tries
    command = ["data", "publish", str(corpus), "owner/llaso-instruct"]
    for name in (".build/set_aside/x.parquet", "data/text_audio/.train-x.parquet.part", "validation.html.part", LOCK):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_bytes(b"not of the corpus")
    hub.cut_after(2)
    assert main(command) == 2
    assert "run the same command again" in capsys.readouterr().err
    assert len(hub.uploads) >= 2 and not hub.repos[REPO][-1]["files"]
    before = len(hub.uploads)
    hub.cut_after(None)
    assert main(command) == 0
    assert REPO in capsys.readouterr().out
    # What had arrived is not sent again, every large file arrived once, and nothing else is there.
    parquet = {str(f.relative_to(corpus)) for f in corpus.glob("data/*/*.parquet")}
    assert len(hub.uploads) > before and max(Counter(hub.uploads).values()) == 1
    files = hub.files(REPO)
    records = {"README.md", "build.json", "leakage.json", "rejects.jsonl", "validation.json"}
    assert set(files) == parquet | records
    assert all(files[path] == (corpus / path).read_bytes() for path in files)
    assert b'load_dataset("owner/llaso-instruct", "text_audio"' in files["README.md"]
    assert not any(str(corpus.parent).encode() in data for data in files.values())  # a machine's folders
    # Anyone reads it: every format and group of tasks is a config, whose rows are those that were built.
    configs = ("text_audio:train", "audio:train", "paralinguistic:validation", "default:validation")
    read = python(hub, tmp_path, "-c", READ, *configs)
    assert read.returncode == 0, read.stderr[-2000:]
    for config, line in zip(configs, read.stdout.splitlines(), strict=True):
        name, split = config.split(":")
        wanted = [
            [row["id"], row["messages"], row["target"], row["audio"][0]["bytes"].hex()]
            for row in rows_of(corpus)
            if row["split"] == split and name in ("default", row["modality"], row["category"])
        ]
        assert wanted and json.loads(line) == json.loads(json.dumps(sorted(wanted))), config


def test_the_card_is_what_was_built(built: Path, hub: HubServer, tmp_path: Path):
    assert main(["data", "publish", str(built), "owner/llaso-instruct"]) == 0
    text = hub.files(REPO)["README.md"].decode()
    card = DatasetCard(text)
    record = json.loads((built / "build.json").read_text())
    configs = {config["config_name"]: config["data_files"] for config in card.data.to_dict()["configs"]}
    assert set(configs) == {"default", "text_audio", "audio_text", "audio"} | {
        row["category"] for row in rows_of(built)
    }
    for name, files in configs.items():
        for file in files:
            within = [row for row in rows_of(built) if row["split"] == file["split"]]
            rows = {row["id"] for row in within if name in ("default", row["modality"], row["category"])}
            found = {row["id"] for shard in built.glob(file["path"]) for row in pq.read_table(shard).to_pylist()}
            assert rows == found, (name, file)
    assert yaml.safe_load(text.split("---")[1])["pretty_name"] == "LLaSO-Instruct"
    counts = Counter(row["split"] for row in rows_of(built))
    assert (
        f"{record['rows']:,} rows, {record['hours']:,.2f} hours: {counts['train']} train, {counts['validation']}"
        in text
    )
    for said in ("CC0-1.0", "https://example.org", "@article{llaso2025", "Sun, Yirong", record["fingerprint"][:16]):
        assert said in text
    apart = json.loads((built / "leakage.json").read_text())
    assert (
        f"share no audio, speaker, synthetic voice, sentence or recording with the {apart['rows_checked']:,}" in text
    )
    # A downloaded copy passes validation, too.
    checked = validate(downloaded(hub.files(REPO), tmp_path / "copy"))
    assert checked["found"] == 0 and "sentences and recordings of copy are not known here" in checked["notes"][0]
    tasks = Counter(row["task"] for row in rows_of(built))
    for task, line in ((task, next(s for s in text.splitlines() if s.startswith(f"| {task} ("))) for task in tasks):
        assert sum(int(cell) for cell in line.split("|")[2:5]) == tasks[task]


def test_publishing_again_sends_only_what_changed(corpus: Path, hub: HubServer):
    """The same corpus is no new commit, another name is on the card, and shards of an earlier one do not stay."""
    assert main(["data", "publish", str(corpus), "owner/llaso-instruct"]) == 0
    there = len(hub.commits(REPO))
    assert main(["data", "publish", str(corpus), "owner/llaso-instruct"]) == 0
    assert len(hub.commits(REPO)) == there
    assert main(["data", "publish", str(corpus), "owner/second"]) == 0
    assert b'load_dataset("owner/second", "' in hub.files("datasets/owner/second")["README.md"]
    source = SOURCE.at(corpus.parent / "fewer", notes=12, questions=0)
    write_recordings(corpus.parent / "fewer")
    fewer = build("instruct", [source], corpus.parent / "again", **{**SETTINGS, "rows_per_shard": 50})
    validate(fewer)
    assert main(["data", "publish", str(fewer), "owner/llaso-instruct"]) == 0
    parquet = {str(f.relative_to(fewer)) for f in fewer.glob("data/*/*.parquet")}
    assert {path for path in hub.files(REPO) if path.startswith("data/")} == parquet


def test_only_what_was_validated_is_published(corpus: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]):
    def refused(match: str, folder: Path = corpus, *options: str) -> None:
        assert main(["data", "publish", str(folder), "owner/llaso-instruct", *options]) == 2
        assert match in capsys.readouterr().err and not hub.repos and not hub.uploads

    report = (corpus / "validation.json").read_bytes()
    (corpus / "validation.json").unlink()
    refused("has not been validated: run `llaso data validate")
    (corpus / "validation.json").write_bytes(report[:-9])
    refused("has not been validated")
    (corpus / "validation.json").write_bytes(report)
    file = sorted(corpus.glob("data/*/train-*.parquet"))[0]
    rows, before = pq.read_table(file).to_pylist(), file.read_bytes()
    rows[0]["target"] = ""
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)
    refused("has changed since it was validated")
    refused("has changed since it was validated", corpus, "--manifest-only")
    validate(corpus)
    refused("holds 1 bad rows (bad_rows.jsonl)")
    file.write_bytes(before)
    validate(corpus, set_aside=True)
    stray = file.with_name(f"old-{file.name}")
    stray.write_bytes(before)
    refused("is no part of this corpus")
    stray.unlink()
    leaks = json.loads((corpus / "leakage.json").read_text())
    (corpus / "leakage.json").write_text(json.dumps({**leaks, "clean": False}))
    refused("shares rows with training")
    refused("no finished corpus", corpus.parent)
    for text, match in (("{", "is not JSON"), ("{}", "has no corpus, fingerprint"), ("[]", "is no JSON object")):
        (corpus / "build.json").write_text(text)
        refused(f"build.json {match}" if text == "{" else match)


def test_what_stands_in_the_way_on_the_hub(
    corpus: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from huggingface_hub import HfApi

    def refused(match: str, repo: str, *options: str) -> None:
        assert main(["data", "publish", str(corpus), repo, *options]) == 2
        said = capsys.readouterr().err
        assert match in said and said.count("\n") == 1 and not hub.uploads

    refused("Repo id must", "owner/with space")
    refused("may not do this", "stranger/llaso-instruct")
    api = HfApi()
    api.create_repo("owner/else", repo_type="dataset")
    for name, content in (("cats.csv", b"a,b"), ("README.md", b"---\npretty_name: Cats\n---\n")):
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="owner/else", repo_type="dataset")
        refused("holds another data set", "owner/else")
    api.create_repo("owner/public", repo_type="dataset")
    refused("owner/public is public", "owner/public", "--private")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    refused("does not accept this token, or there is none", "owner/llaso-instruct")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused("run the same command again", "owner/llaso-instruct")


# --- audio that may not be published ------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """LLaSO-Align of a source whose audio may not be published again."""
    source = replace(SOURCE, license="Not to be shared").at(write_recordings(tmp_path / "tiny"))
    out = build("align", [replace(source, options={"notes": 0, "questions": 0})], tmp_path / "closed", **SETTINGS)
    validate(out)
    return out


def test_closed_sources_are_refused_before_anything_is_sent(
    closed: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
):
    record = json.loads((closed / "build.json").read_text())
    for told in ({}, {"manifest": True}):  # nor does it help to call it a manifest: validation saw the audio
        (closed / "build.json").write_text(json.dumps({**record, **told}))
        assert main(["data", "publish", str(closed), "owner/closed"]) == 2
        assert "tiny (Not to be shared)" in capsys.readouterr().err and not hub.repos


def test_a_manifest_carries_no_audio(closed: Path, hub: HubServer, tmp_path: Path):
    """Not a byte of it leaves; ids, names and hashes do, by which who has the sources finds the same clips."""
    original = rows_of(closed)
    assert main(["data", "publish", str(closed), "owner/closed", "--manifest-only", "--private"]) == 0
    assert hub.private == {"datasets/owner/closed"}
    files = hub.files("datasets/owner/closed")
    assert b"This is a manifest" in files["README.md"] and b"the corpus is built again" in files["README.md"]
    assert json.loads(files["build.json"])["manifest"]
    for clip in (clip["bytes"] for row in original for clip in row["audio"]):
        body = clip[len(clip) // 2 :][:24]
        assert len(body) == 24 and not any(body in held.read_bytes() for held in hub.objects.iterdir())
    assert not any(b"fLaC" in held.read_bytes() for held in hub.objects.iterdir())
    published = published_rows(files)
    assert all(clip["bytes"] is None and clip["path"] for row in published for clip in row["audio"])
    without = [{**row, "audio": [{**clip, "bytes": None} for clip in row["audio"]]} for row in original]
    assert published == without
    copy = downloaded(files, tmp_path / "copy")
    loaded = load_dataset(str(copy), "text_audio", split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["id"] for row in loaded} == {row["id"] for row in original if row["split"] == "train"}
    assert validate(copy)["found"] == 0
    # The corpus built again by what build.json says has the same rows.
    record = json.loads(files["build.json"])
    settings = {k: v for k, v in record["settings"].items() if k != "options"}
    source = replace(SOURCE, license="Not to be shared").at(tmp_path / "tiny")
    again = replace(source, options=record["settings"]["options"]["tiny"])
    rebuilt = build("align", [again], tmp_path / "again", seed=record["seed"], speech=record["speech"], **settings)
    assert rows_of(rebuilt) == original


def test_a_manifest_is_made_anew_when_the_corpus_changed(closed: Path, hub: HubServer):
    assert main(["data", "publish", str(closed), "owner/closed", "--manifest-only"]) == 0
    file = sorted(closed.glob("data/*/train-*.parquet"))[0]
    rows = pq.read_table(file).to_pylist()
    rows[0]["target"] = ""
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)
    assert validate(closed, set_aside=True)["found"] == 1
    assert main(["data", "publish", str(closed), "owner/closed", "--manifest-only"]) == 0
    ids = {row["id"] for row in published_rows(hub.files("datasets/owner/closed"))}
    assert rows[0]["id"] not in ids and len(ids) == len(rows_of(closed))


def test_an_imported_release_is_published_as_a_manifest(built: Path, hub: HubServer, tmp_path: Path):
    """With the fields that only the release has, so that it can be exported from the Hub's copy, too."""
    export_release(built, tmp_path / "release")
    import_release(tmp_path / "release", tmp_path / "in", audio_root=tmp_path / "release/audio")
    validate(tmp_path / "in")
    assert main(["data", "publish", str(tmp_path / "in"), "owner/in"]) == 2
    assert main(["data", "publish", str(tmp_path / "in"), "owner/in", "--manifest-only"]) == 0
    card = hub.files("datasets/owner/in")["README.md"].decode()
    assert "finds each clip by its `path`" in card and "the corpus is built again" not in card
    published = published_rows(hub.files("datasets/owner/in"))
    assert [row["release"] for row in published] == [row["release"] for row in rows_of(tmp_path / "in")]
