"""Turns written chats into a corpus without audio, which training mixes in to keep a language model's text skill.

The input is a file of chats or a data set: OpenAI's `messages`, ShareGPT's `conversations`, or a prompt and a response
as in Alpaca. The output is a folder for `data.text_path` of a recipe.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from llaso_common.hub_errors import plain_errors
from llaso_common.open_corpus import open_split
from llaso_common.output_folder import refuse_existing, replaced_folder
from llaso_common.schema import FEATURES, TEXT_TASK

from . import corpus_folder, release
from .dataset_rows import HUB_ID
from .files import records
from .own_rows import FoundRow
from .sources.base import Reject

ROWS_AT_ONCE, ROWS_PER_SHARD = 1_000, 10_000
"""Rows of a Parquet file's row group, and of a file."""
ROLES = release.ROLES | {"user": "user", "assistant": "assistant"}
TURNS = ("messages", "conversations")
"""Names of the column that holds a chat's turns."""
PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("response", "output", "completion", "answer")
INPUTS = ("input", "context")
"""Names of the columns of a chat of one turn: the prompt, the response, and what follows the prompt, if anything."""
SYSTEMS = ("system", "system_prompt")
"""Names of the column of a system prompt beside the turns."""
SOUNDS_AND_PICTURES = ("audio", "audios", "image", "images", "video", "videos")
"""Names of columns without which the text of a chat may make no sense."""
AUDIO_MARKS = ("<audio>", "<Audio>", "</Audio>", "<audio_start>", "<audio_end>")
"""Marks that the processor writes around a recording and in its place; typed in a chat, they would look like one."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Endings of the names of files that hold chats."""
_SURROGATE = re.compile("[\ud800-\udfff]")
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/text/train-*.parquet
  description: content {content}
---

# Written chats

{rows:,} chats from `{source}`, as rows without audio for `data.text_path` of a recipe. Written by
`llaso data import-chats`.
"""
"""`content` tells this folder from others of its name in datasets' cache, as in `corpus_card`."""


def import_chats(
    source: str,
    out: Path,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Write chats as a corpus of rows without audio.

    Chats that cannot be used are listed in `rejects.jsonl`, each with its place and the reason.

    Args:
        source: a file (`SUFFIXES`), a folder that `load_dataset` opens, or the id of a data set on the Hub.
        out: the folder to write; it is there as a whole or not at all.
        split, config, revision: of a folder or a data set, as `load_dataset` takes them; the split is `train` by
            default.
        limit: chats to read at most, from the beginning.
        overwrite: whether to replace what is in `out`.
        progress: called now and then with the number of rows written.

    Returns:
        `rows`, and `rejects`: counts by reason, the most frequent first.

    Raises:
        ValueError: there is no such file, it cannot be read, it has no splits or configs, or none of its chats can be
            used.
        FileNotFoundError: there is no such data set.
        ConnectionError: the Hub cannot be reached.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_existing(out, overwrite)
    _refuse_inside(source, out)
    found = islice(_found(source, split, config, revision), limit)
    reasons = Counter[str]()
    count = 0
    with replaced_folder(out) as folder:
        (folder / "data" / "text").mkdir(parents=True)
        with (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects:
            rows = _rows(found, reasons, rejects)
            for number, shard in enumerate(iter(lambda: list(islice(rows, ROWS_PER_SHARD)), [])):
                file = folder / "data" / "text" / f"train-{number:05}.parquet"
                table = pa.Table.from_pylist(shard, schema=FEATURES.arrow_schema)
                pq.write_table(table, file, row_group_size=ROWS_AT_ONCE)
                count += len(shard)
                progress(count)
        if not count:
            most = "; ".join(f"{number} × {reason}" for reason, number in reasons.most_common(3))
            raise ValueError(f"{source}: no chat can be used: {most or 'there is none'}")
        content = corpus_folder.content_of(corpus_folder.digests(folder))[:16]
        card = CARD.format(rows=count, source=source, content=content)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"rows": count, "rejects": dict(reasons.most_common())}


def _refuse_inside(source: str, out: Path) -> None:
    """Raise a ValueError if what is read lies in the folder that would be replaced, or the reverse."""
    path = Path(source).expanduser()
    if path.exists():
        inner, outer = path.resolve(), out.expanduser().resolve()
        if inner.is_relative_to(outer) or (path.is_dir() and outer.is_relative_to(inner)):
            raise ValueError(f"{out} and the chats in {source} lie one in the other; name another folder with --out")


def _found(source: str, split: str | None, config: str | None, revision: str | None) -> Iterator[FoundRow | Reject]:
    """Yield the rows of a file or a data set, with their places."""
    path = Path(source).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: a file of chats ends in {', '.join(SUFFIXES)}")
        if split or config or revision:
            raise ValueError(f"{path} is a file, which has no split, config or revision; leave them out")
        for number, row in records(path):
            yield row if isinstance(row, Reject) else FoundRow(f"{path}:{number}", row, path.parent)
        return
    looks_local = source.startswith((".", "/", "~")) or source.endswith(SUFFIXES)
    if not path.is_dir() and (looks_local or not HUB_ID.fullmatch(source)):
        raise ValueError(f"{source}: no such file or folder; an id of the Hub is `owner/name`")
    name = str(path) if path.is_dir() else source
    with plain_errors(source):
        split = split or "train"
        for number, row in enumerate(open_split(name, split, config, revision=revision, streaming=True)):
            yield FoundRow(f"{source}, {split}, row {number}", row, path)


def _rows(found: Iterator[FoundRow | Reject], reasons: Counter[str], rejects: IO[str]) -> Iterator[dict[str, Any]]:
    """Yield the chats as rows; those that cannot be used are counted and listed."""
    for number, one in enumerate(found):
        row = chat_row(one, f"text/{number:09}") if isinstance(one, FoundRow) else one
        if isinstance(row, Reject):
            reasons[row.reason] += 1
            rejects.write(json.dumps({"where": row.where, "reason": row.reason}, ensure_ascii=False) + "\n")
        else:
            yield row


def chat_row(found: FoundRow, row_id: str) -> dict[str, Any] | Reject:
    """Turn a chat into a row, or say why it cannot be one."""
    try:
        turns = list(_turns(found.values))
    except ValueError as error:
        return Reject(found.where, str(error))
    exchange = turns[1:] if turns and turns[0][0] == "system" else turns
    if not exchange or [role for role, _ in exchange] != ["user", "assistant"] * (len(exchange) // 2):
        return Reject(found.where, "its turns are not user, assistant, user, …, assistant, after at most one system")
    if not all(text.strip() for _, text in turns):
        return Reject(found.where, "a turn is empty")
    if any(mark in text for _, text in turns for mark in AUDIO_MARKS):
        return Reject(found.where, f"its text holds a mark of audio, such as {AUDIO_MARKS[0]}")
    return {
        "id": row_id,
        "corpus": "instruct",
        "task": TEXT_TASK,
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
        ValueError: it has none of the known forms, or says more than a row can hold.
    """
    if with_it := next((name for name in SOUNDS_AND_PICTURES if chat.get(name)), None):
        raise ValueError(f"it has {with_it} beside its text")
    system = _one(chat, SYSTEMS)
    turns = _one(chat, TURNS)
    if turns is None:
        prompt, response, more = (_one(chat, names) for names in (PROMPTS, RESPONSES, INPUTS))
        if prompt is None or response is None:
            raise ValueError(
                f"it has neither {' nor '.join(TURNS)}, nor texts in one of {', '.join(PROMPTS)} and one of "
                f"{', '.join(RESPONSES)}"
            )
        if chat.get("history"):
            raise ValueError("it has a history beside its prompt; write all turns into messages")
        prompt = _text(prompt) if more is None else f"{_text(prompt)}\n\n{_text(more)}"
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("its turns are not a list of objects")
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"a turn's role is none of {', '.join(ROLES)}")
        if turn.get("tool_calls"):
            raise ValueError("a turn calls tools")
        yield ROLES[role], _text(turn.get("content", turn.get("value")))


def _one(chat: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value of the one column that is there and holds something; None if there is none.

    Raises:
        ValueError: there are two.
    """
    there = [name for name in names if chat.get(name) not in (None, "")]
    if len(there) > 1:
        raise ValueError(f"it has both {there[0]} and {there[1]}")
    return chat[there[0]] if there else None


def _text(content: Any) -> str:
    """Return the text of a turn, which may be in parts.

    Raises:
        ValueError: it holds something else, or half of a surrogate pair, which UTF-8 cannot write.
    """
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a turn's content is not text")
    text = "".join(map(str, texts))
    if _SURROGATE.search(text):
        raise ValueError("its text holds half of a surrogate pair")
    return text
