"""Uploading by rule: nothing is overwritten unasked, nothing is sent twice, and every refusal is one clear line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.hub_server import HubServer, connected, serve

from llaso.cli import main
from llaso.publishing import hub_upload as hub_module
from llaso.publishing.hub_upload import Destination, upload

TO = Destination("owner/model")
FILES: dict[str, Path | bytes] = {
    "README.md": b"A model.\n",
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first " * 1000,
    "model-00002-of-00002.safetensors": b"second " * 1000,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that this process's clients speak to as "owner"; they try again without waiting."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with serve(tmp_path / "objects") as server, connected(server, tmp_path / "home"):
        server.accounts["hf_friend"] = "friend"
        yield server


def test_one_commit_and_never_twice(hub: HubServer):
    first = upload(FILES, TO, "a model")
    assert hub.files("models/owner/model") == FILES and first.url == f"{hub.endpoint}/owner/model"
    assert [commit["title"] for commit in hub.repos["models/owner/model"]] == ["initial", "a model"]
    assert sorted(first.sent) == sorted(FILES) and first.commit == hub.repos["models/owner/model"][-1]["oid"]
    again = upload(FILES, TO, "a model")
    assert again.sent == () and again.commit == first.commit
    assert len(hub.repos["models/owner/model"]) == 2 and len(hub.uploads) == 2
    more = upload({**FILES, "report/report.json": b"{}"}, TO, "with its report")
    assert more.sent == ("report/report.json",) and len(hub.uploads) == 2


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"README.md": b"Somebody's words.\n"}, "would overwrite README.md"),
        ({"model-00001-of-00002.safetensors": b"theirs"}, "would overwrite model-00001-of-00002.safetensors"),
        ({"model.safetensors": b"theirs"}, "other weights beside this model's: model.safetensors"),
        ({"adapter_config.json": b"{}"}, "other weights beside this model's: adapter_config.json"),
    ],
)
def test_files_of_a_repository_are_not_overwritten_unasked(hub: HubServer, theirs: dict, said: str):
    upload({**theirs, "notes/diary.md": b"Kept.\n"}, TO, "theirs")
    before = hub.files("models/owner/model")
    with pytest.raises(
        ValueError, match=f"nothing was sent, for it {'would'}.*{said.split('would')[-1].strip()}"
    ) as refusal:
        upload(FILES, TO, "ours")
    assert "--replace" in str(refusal.value) and hub.files("models/owner/model") == before
    upload(FILES, replace(TO, replace=True), "ours")
    after = hub.files("models/owner/model")
    assert after == {**FILES, "notes/diary.md": b"Kept.\n"}
    assert hub.repos["models/owner/model"][1]["files"].keys() == before.keys()  # the history has them still


def test_a_revision_is_made_as_a_branch(hub: HubServer):
    upload({"README.md": b"Somebody's words.\n"}, TO, "theirs")
    trial = replace(TO, revision="trial/1")
    with pytest.raises(ValueError, match="branch trial/1: nothing was sent"):
        upload(FILES, trial, "ours")
    assert not hub.branches  # refused before anything was made
    config = {"config.json": FILES["config.json"]}
    upload(config, trial, "ours")
    assert "config.json" in hub.files("models/owner/model", "trial/1")
    assert "config.json" not in hub.files("models/owner/model")
    assert upload(config, trial, "ours").sent == ()


def test_private_repositories_stay_private(hub: HubServer):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    upload(FILES, replace(TO, private=True), "secret")
    assert hub.private == {"models/owner/model"}
    assert upload(FILES, replace(TO, private=True), "secret").sent == () == upload(FILES, TO, "secret").sent
    assert Path(hf_hub_download("owner/model", "README.md")).read_bytes() == FILES["README.md"]
    for token in ("hf_friend", False):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("owner/model", "config.json", token=token)
    upload(FILES, Destination("owner/open"), "open")
    with pytest.raises(ValueError, match="owner/open is public"):
        upload({"more.json": b"{}"}, Destination("owner/open", private=True), "meant to be secret")
    assert "more.json" not in hub.files("models/owner/open")


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("hf_nobody", "does not accept this token.*Invalid credentials.*hf auth login"),
        ("hf_friend", "this token may not do this .*namespace 'owner'"),
        (None, "does not accept this token, or there is none"),
    ],
)
def test_wrong_tokens_change_nothing(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str):
    monkeypatch.delenv("HF_TOKEN")
    for private in (False, True):
        with pytest.raises(PermissionError, match=said):
            upload(FILES, Destination("owner/model", private=private, token=token), "m")
    assert not hub.repos and not hub.uploads
    upload(FILES, Destination("owner/model", private=True, token="hf_local"), "m")
    with pytest.raises(PermissionError, match=said):
        upload({"more.json": b"{}"}, replace(TO, token=token), "m")
    assert hub.files("models/owner/model") == FILES


def test_a_cut_connection_loses_nothing(hub: HubServer):
    hub.cut_after(1)
    with pytest.raises(ConnectionError, match="the connection to the Hub broke.*run the same command again"):
        upload(FILES, TO, "a model")
    arrived = list(hub.uploads)
    assert len(arrived) == 1 and hub.files("models/owner/model") == {}
    hub.cut_after(None)
    upload(FILES, TO, "a model")
    assert hub.files("models/owner/model") == FILES
    assert hub.uploads[:1] == arrived and set(Counter(hub.uploads).values()) == {1} and len(hub.uploads) == 2


def test_a_lost_answer_is_no_second_commit(hub: HubServer):
    hub.lose_replies = True
    with pytest.raises(ConnectionError, match="the connection to the Hub broke"):
        upload(FILES, TO, "a model")
    hub.lose_replies = False
    assert upload(FILES, TO, "a model").sent == ()
    assert len(hub.repos["models/owner/model"]) == 2


def test_a_commit_made_meanwhile_is_not_overwritten(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    upload({"notes.md": b"Kept.\n"}, TO, "theirs")
    look = hub_module._tree

    def look_and_be_overtaken(*arguments):
        seen = look(*arguments)
        commits = hub.repos["models/owner/model"]
        commits.append({**commits[-1], "oid": "c" * 40, "title": "theirs again"})
        return seen

    monkeypatch.setattr(hub_module, "_tree", look_and_be_overtaken)
    with pytest.raises(ValueError, match="it was changed on the Hub meanwhile"):
        upload(FILES, TO, "ours")
    assert hub.repos["models/owner/model"][-1]["title"] == "theirs again"


def test_an_unreachable_hub_is_named_with_the_remedy(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="unset HF_HUB_OFFLINE"):
        upload(FILES, TO, "m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="the connection to the Hub broke"):
        upload(FILES, TO, "m")


def test_publish_commands_say_what_was_sent_or_refused_in_one_line(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["publish-module", "owner/llaso_eval"]) == 0
    assert "3 files sent" in capsys.readouterr().out and hub.sdks == {"spaces/owner/llaso_eval": "static"}
    assert main(["publish-module", "owner/llaso_eval"]) == 0
    assert "nothing sent" in capsys.readouterr().out
    card = hub.files("spaces/owner/llaso_eval")["README.md"].decode()
    assert 'evaluate.load("owner/llaso_eval")' in card and "sdk: static" in card
    for arguments in (
        ["publish-module", "llaso_eval"],
        ["publish-module", "owner/llaso_eval", "--private"],
        ["publish-module", "friend/llaso_eval"],
        ["publish", str(tmp_path), "owner/model"],
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("llaso: error: ") and error.count("\n") == 1, error
