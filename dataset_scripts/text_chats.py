"""Turns chats in text into a corpus without audio, which training mixes in to keep a language model's text skill.

The input is a file of chats or a data set: OpenAI's `messages`, ShareGPT's `conversations`, or a prompt and a response
as in Alpaca. The output is a folder in the row schema, for `data.text_path` of a recipe.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llaso_common.hub_errors import plain_errors
from llaso_common.output_folder import refuse_existing, replaced_folder
from llaso_common.schema import FEATURES
from modeling_llaso.processing_llaso import AUDIO_TAGS, AUDIO_TOKEN

from . import corpus_folder
from .dataset_rows import HUB_ID
from .files import records
from .own_rows import FoundRow
from .sources.base import Reject

ROWS_AT_ONCE, ROWS_PER_SHARD = 1_000, 100_000
"""Rows of a Parquet file's row group, and of a file."""
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("response", "output", "completion", "answer")
"""Names of the columns of a chat of one turn; Alpaca's `input`, if there is one, follows the prompt."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""What the name of a file of chats ends in."""
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/text/train-*.parquet
  description: content {content}
---

# Chats in text

{rows:,} chats from `{source}`, in the row schema of LLaSO without audio, written by `llaso data text`.
"""
"""`content` keeps `load_dataset` from giving another folder's rows, as in `corpus_card`."""


def write_text_corpus(
    source: str,
    out: Path,
    *,
    split: str = "train",
    config: str = "",
    revision: str = "",
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Write chats as a corpus of rows without audio.

    Chats that cannot be used are listed in `rejects.jsonl`, each with its place and the reason.

    Args:
        source: a file (`SUFFIXES`), a folder that `load_dataset` opens, or the id of a data set on the Hub.
        out: the folder to write; it is there as a whole or not at all.
        split, config, revision: of a data set, as `load_dataset` takes them.
        limit: chats to read at most, from the beginning.
        overwrite: whether to replace what is in `out`.
        progress: called now and then with the number of rows written.

    Returns:
        `rows`, and `rejects`: counts by reason.

    Raises:
        ValueError: there is no such file or data set, it cannot be read, or none of its chats can be used.
        ConnectionError: the Hub cannot be reached.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_existing(out, overwrite)
    reasons = Counter[str]()
    count = 0

    def rows(rejects: Any) -> Iterator[dict[str, Any]]:
        for number, found in enumerate(islice(_found(source, split, config, revision), limit)):
            read = chat_row(found, f"text/{number:09}") if isinstance(found, FoundRow) else found
            if isinstance(read, Reject):
                reasons[read.reason] += 1
                rejects.write(json.dumps({"where": read.where, "reason": read.reason}, ensure_ascii=False) + "\n")
            else:
                yield read

    with replaced_folder(out) as folder:
        (folder / "data" / "text").mkdir(parents=True)
        with (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects:
            chats = rows(rejects)
            while shard := list(islice(chats, ROWS_AT_ONCE)):
                file = folder / "data" / "text" / f"train-{count // ROWS_PER_SHARD:05}.parquet"
                with pq.ParquetWriter(file, FEATURES.arrow_schema) as writer:
                    while shard:
                        writer.write_table(pa.Table.from_pylist(shard, schema=FEATURES.arrow_schema))
                        count += len(shard)
                        progress(count)
                        shard = list(islice(chats, ROWS_AT_ONCE)) if count % ROWS_PER_SHARD else []
        if not count:
            said = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common(3))
            raise ValueError(f"{source}: no chat can be used: {said or 'there is none'}")
        content = corpus_folder.content_of(corpus_folder.digests(folder))[:16]
        card = CARD.format(rows=count, source=source, content=content)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"rows": count, "rejects": dict(reasons)}


def _found(source: str, split: str, config: str, revision: str) -> Iterator[FoundRow | Reject]:
    """Yield the rows of a file or a data set, with their places."""
    path = Path(source).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: a file of chats ends in {', '.join(SUFFIXES)}")
        for number, row in records(path):
            yield row if isinstance(row, Reject) else FoundRow(f"{path}:{number}", row, path.parent)
        return
    if not path.is_dir() and not HUB_ID.fullmatch(source):
        raise ValueError(f"{source}: no such file or folder; an id of the Hub is `owner/name`")
    from datasets import load_dataset

    with plain_errors(source):
        stream = load_dataset(
            str(path) if path.is_dir() else source,
            config or None,
            split=split,
            revision=revision or None,
            streaming=True,
        )
        for number, row in enumerate(stream, start=1):
            yield FoundRow(f"{source}, {split}, row {number}", row, path)


def chat_row(found: FoundRow, row_id: str) -> dict[str, Any] | Reject:
    """Turn a chat into a row of the schema, or say why it cannot be one."""
    try:
        turns = list(_turns(found.values))
    except ValueError as error:
        return Reject(found.where, str(error))
    spoken = turns[1:] if turns and turns[0][0] == "system" else turns
    if not spoken or [role for role, _ in spoken] != ["user", "assistant"] * (len(spoken) // 2):
        return Reject(found.where, "its turns are not user, assistant, user, …, assistant, after at most one system")
    if not all(text.strip() for _, text in turns):
        return Reject(found.where, "a turn is empty")
    if any(mark in text for _, text in turns for mark in (AUDIO_TOKEN, *AUDIO_TAGS)):
        return Reject(found.where, f"its text holds a mark of audio, such as {AUDIO_TOKEN}")
    return {
        "id": row_id,
        "corpus": "instruct",
        "task": "TEXT",
        "category": "",
        "modality": "",
        "source": "text",
        "split": "train",
        "messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns],
        "audio": [],
        "target": turns[-1][1],
        "choices": [],
        "template_id": "",
        "style": "",
        "voice": "",
        "speaker": "",
        "duration": 0.0,
        "length": 0,
        "license": "",
        "sha256": "",
    }


def _turns(chat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield role and text of a chat's turns.

    Raises:
        ValueError: it has none of the known forms.
    """
    turns = chat.get("messages") or chat.get("conversations")
    if turns is None:
        prompt, response = (
            next((chat[name] for name in names if chat.get(name)), None) for names in (PROMPTS, RESPONSES)
        )
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise ValueError(
                f"it has neither `messages`, nor `conversations`, nor texts in one of {', '.join(PROMPTS)} and one of "
                f"{', '.join(RESPONSES)}"
            )
        if isinstance(chat.get("system"), str) and chat["system"]:
            yield "system", chat["system"]
        more = chat.get("input")
        yield "user", f"{prompt}\n\n{more}" if isinstance(more, str) and more else prompt
        yield "assistant", response
        return
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("its turns are no list of objects")
    for turn in turns:
        said = str(turn.get("role", turn.get("from")))
        if said not in ROLES:
            raise ValueError(f"a turn's role is none of {', '.join(ROLES)}")
        yield ROLES[said], _text(turn.get("content", turn.get("value")))


def _text(content: Any) -> str:
    """Return the text of a turn, which may be in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError("a turn's content is no text")
