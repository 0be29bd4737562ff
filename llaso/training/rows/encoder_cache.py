"""Keeps the frozen encoder's output on disk: computed once, read in every later epoch, stage and run.

A clip is identified by the digest of its bytes, a cache folder by the digest of the encoder's weights and of
everything else that changes its output, so no stale output is read. One file of float16 vectors grows to a stated
size; an index beside it lists the complete clips, so that a killed run loses at most its last clips. Several runs may
share a folder: one at a time adds to it, and written entries never change.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llaso_common.folder_lock import one_at_a_time
from llaso_common.schema import Row, clip_bytes
from modeling_llaso.configuration_llaso import count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoAudioOutput, LlasoForConditionalGeneration
from modeling_llaso.processing_llaso import LlasoProcessor, stack_windows

from .corpora import log_mels

logger = logging.getLogger(__name__)

DTYPE = np.dtype("float16")
GIGABYTE = 10**9
WINDOWS_AT_ONCE = 16
"""Windows that the encoder reads together while the cache fills."""


@dataclass(frozen=True)
class Entry:
    """The place of one clip: its first vector in the file, and the number of vectors of each of its windows."""

    start: int
    windows: tuple[int, ...]


class EncoderCache:
    """Holds encoder output by clip, on disk. One process writes; others only read.

    Args:
        folder: created if absent; the fingerprint becomes a sub-folder of it.
        fingerprint: of the encoder and its settings, from `fingerprint`.
        width: of an encoder vector.
        limit: bytes that the vectors may take.
    """

    def __init__(self, folder: Path, fingerprint: str, width: int, limit: int) -> None:
        self.folder = folder / fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        self.width, self.limit = width, limit
        self.vectors_file, self.index_file = self.folder / "vectors.f16", self.folder / "index.jsonl"
        self.entries: dict[str, Entry] = {}
        self.used = 0  # vectors
        self.index_bytes = 0  # of the index, up to the last whole line
        self._mapped: np.ndarray | None = None
        self.read_index()

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": None}  # each worker process maps the file itself

    @property
    def bytes_used(self) -> int:
        """Bytes of vectors on disk."""
        return self.used * self.width * DTYPE.itemsize

    def add(self, key: str, windows: Iterable[torch.Tensor]) -> bool:
        """Keep one clip's windows, each `(positions, width)`; return False if the limit or the disk is full."""
        arrays = [window.detach().to(torch.float16).cpu().numpy() for window in windows]
        if self.bytes_used + sum(array.nbytes for array in arrays) > self.limit:
            return False
        entry = Entry(self.used, tuple(len(array) for array in arrays))
        try:
            with self.vectors_file.open("r+b" if self.vectors_file.exists() else "wb") as file:
                file.seek(self.bytes_used)
                for array in arrays:
                    file.write(array.tobytes())
            line = json.dumps({"key": key, "start": entry.start, "windows": entry.windows}).encode() + b"\n"
            with self.index_file.open("r+b" if self.index_file.exists() else "wb") as file:
                file.seek(self.index_bytes)
                file.write(line)
                file.truncate()
        except OSError as error:
            logger.warning("the encoder cache stops growing: %s", error)
            self.limit = self.bytes_used
            return False
        self.entries[key] = entry
        self.used += sum(entry.windows)
        self.index_bytes += len(line)
        self._mapped = None
        return True

    def get(self, key: str) -> list[torch.Tensor]:
        """Return one clip's windows, each `(positions, width)` float32."""
        if self._mapped is None:
            self._mapped = np.memmap(self.vectors_file, DTYPE, "r", shape=(self.used, self.width))
        entry = self.entries[key]
        windows, start = [], entry.start
        for size in entry.windows:
            windows.append(torch.from_numpy(self._mapped[start : start + size].astype(np.float32)))
            start += size
        return windows

    def read_index(self) -> None:
        """Read the complete entries on disk, without changing them: another run may be writing its last line."""
        self.entries, self.used, self.index_bytes, self._mapped = {}, 0, 0, None
        if not self.index_file.exists():
            return
        there = self.vectors_file.stat().st_size // (self.width * DTYPE.itemsize) if self.vectors_file.exists() else 0
        for line in self.index_file.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
                entry = Entry(record["start"], tuple(record["windows"]))
            except (ValueError, LookupError, TypeError):
                break
            end = entry.start + sum(entry.windows)
            if not line.endswith(b"\n") or entry.start != self.used or end > there:
                break
            self.entries[record["key"]] = entry
            self.used, self.index_bytes = end, self.index_bytes + len(line)


def clip_key(content: bytes) -> str:
    """Digest a clip's bytes, which identifies the clip."""
    return hashlib.sha256(content).hexdigest()


def fingerprint(model: LlasoForConditionalGeneration, processor: LlasoProcessor, precision: str) -> str:
    """Digest all that a clip's encoder output depends on: weights, padding, log-mel settings, precision.

    Weights that bf16 arithmetic multiplies are digested as bf16, so that stages which hold them in different types
    share what is kept.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.audio_tower.state_dict().items()):
        digest.update(name.encode())
        if precision == "bf16":
            tensor = tensor.to(torch.bfloat16)
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    settings = {
        "padding": processor.audio_padding,
        # Must not change: it is part of the digests by which existing caches are found.
        "windows": processor.max_audio_len // processor.feature_extractor.chunk_length,
        "features": processor.feature_extractor.to_dict(),
        "precision": precision,
    }
    if processor.audio_tail:  # absent without one, so that caches from before there were tails are still found
        settings["tail"] = processor.audio_tail
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def fill(
    cache: EncoderCache,
    model: LlasoForConditionalGeneration,
    processor: LlasoProcessor,
    rows: Iterable[Row],
    precision: Callable[[], AbstractContextManager],
    device: torch.device,
    progress: Callable[[int], None],
    report: Callable[[str], None],
) -> None:
    """Encode the clips that are not kept yet, until no more fit. A row that cannot be read is left for training.

    If another run fills the same cache, this one waits for it and then adds what is missing.

    Args:
        cache: takes the output.
        model: its encoder runs.
        processor: cuts and transforms the audio.
        rows: best in the order of their length, so that windows encoded together are of similar length.
        precision: returns the autocast context of the training.
        device: the encoder is moved there, and back afterwards.
        progress: called with the rows done so far.
        report: takes a line if another run is waited for.
    """
    tower = model.model.audio_tower
    home = tower.conv1.weight.device
    waiting: dict[str, list[torch.Tensor]] = {}

    def keep() -> bool:
        features, mask = stack_windows([window for clip in waiting.values() for window in clip])
        with precision():
            vectors = iter(encode_windows(model, features.to(device), mask.to(device)))
        fits = [cache.add(key, [next(vectors) for _ in clip]) for key, clip in waiting.items()]
        waiting.clear()
        return all(fits)

    with one_at_a_time(cache.folder, report):
        cache.read_index()
        try:
            tower.to(device)
            done = 0
            for done, row in enumerate(rows, 1):
                try:
                    keys = [clip_key(clip_bytes(clip)) for clip in row["audio"] or []]
                    if any(key not in cache and key not in waiting for key in keys):
                        read = zip(keys, log_mels(row, processor), strict=True)
                        waiting |= {key: windows for key, (_, windows) in read if key not in cache}
                except ValueError as error:
                    logger.debug("row %s not kept: %s", row["id"], error)
                if sum(map(len, waiting.values())) >= WINDOWS_AT_ONCE:
                    if not keep():
                        break
                    progress(done)
            if waiting:
                keep()
            progress(done)
        finally:
            tower.to(home)


def encode_windows(
    model: LlasoForConditionalGeneration, features: torch.Tensor, mask: torch.Tensor
) -> list[torch.Tensor]:
    """Encode log-mel windows; return one `(positions, width)` tensor for each, padding left out."""
    output = model.model.encode(features, mask)
    if output.vector_mask is None:
        return list(output.last_hidden_state)
    return [vectors[real] for vectors, real in zip(output.last_hidden_state, output.vector_mask, strict=True)]


def kept_audio(windows: Sequence[torch.Tensor]) -> LlasoAudioOutput:
    """Batch windows of kept encoder output, `(positions, width)` each, as `mm_encoder_outputs` takes them."""
    vectors, mask = stack_windows([window.T for window in windows])
    return LlasoAudioOutput(last_hidden_state=vectors.transpose(1, 2), vector_mask=mask.bool())


def audio_tokens_of(windows: Sequence[torch.Tensor], stride: int) -> int:
    """Count the audio tokens of a clip whose windows are kept; a vector is two frames.

    Args:
        windows: the encoder's output, `(positions, width)` each.
        stride: vectors that the projector pools into one token.
    """
    return sum(count_audio_tokens(2 * len(window), stride) for window in windows)
