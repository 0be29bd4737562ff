"""Measures how training reads its rows: `python -m benchmarks loading`.

A corpus of many short rows shows opening, finding a late place, and the time from a kill to the next step; one of
spoken rows shows rows a second with decoding and log-mel. Every measurement is a fresh process. `--old COMMIT`
measures the loaders of an earlier commit as well, in a worktree of it: the one that numbers rows of a copy, and the
stream.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from benchmarks.spread import spread
from llaso.training.rows.row_lengths import row_length
from llaso_common.schema import FEATURES
from modeling_llaso.conversion import new_processor
from modeling_llaso.processing_llaso import LlasoProcessor

ROOT = Path(__file__).parents[1]
ROW_GROUP, OF_FILE = 100, 10_000
"""Rows of a row group and of a file, as `llaso data build` writes them."""
PER_DEVICE, PARALLEL, WORLD = 8, 4, 2
CLIPS = 1000
COLLATED = 1500
"""Rows that are decoded and transformed for a figure."""
KILLED_AT = 12

OLD = """
import json, os, sys, time
from llaso.training.recipe.recipe import DataChoice
from llaso.training.rows.batch_plan import BatchRule, Plan
from llaso.training.rows.corpora import open_corpus
from torch.utils.data import DataLoader
from benchmarks_loading import Clock, collator
asked = json.loads(sys.argv[1])
clock, processor = Clock(), None
collate, processor = collator(asked)
choice = DataChoice(asked["corpus"], streaming=asked["loader"] == "stream")
clock.start()
corpus, rule = open_corpus(choice, 0, processor), BatchRule(asked["per_device"], parallel=asked["parallel"])
windows = corpus.windows(rule, 0)
plan = Plan(windows, rule, 10**9, 0, asked["rank"], asked["world"], asked["step"])
batches = DataLoader(corpus, batch_sampler=plan, collate_fn=collate, num_workers=asked["workers"])
clock.run(batches, asked["per_device"], asked["rows"])
"""
NEW = """
import json, sys
from llaso.training.recipe.recipe import DataChoice
from llaso.training.rows.batch_plan import BatchRule, Plan
from llaso.training.rows.corpora import open_corpus
from llaso.training.rows.read_ahead import ReadAhead, RowsAsRead
from torch.utils.data import DataLoader
from benchmarks_loading import Clock, collator
asked = json.loads(sys.argv[1])
clock = Clock()
collate, processor = collator(asked)
clock.start()
corpus = open_corpus(DataChoice(asked["corpus"]), processor)
plan = Plan(corpus.row_groups, BatchRule(asked["per_device"], parallel=asked["parallel"]), 0)
reading = ReadAhead(corpus, plan, 10**9, asked["rank"], asked["world"], asked["step"])
batches = DataLoader(RowsAsRead(), batch_sampler=reading, collate_fn=collate, num_workers=asked["workers"])
clock.run(batches, asked["per_device"], asked["rows"])
"""
HELPERS = '''
"""Code that every measured process runs before its own, at either commit."""
import json, multiprocessing, os, resource, time
from pathlib import Path

def collator(asked):
    """Return the function that makes a batch of rows, and the processor that counts their lengths."""
    if not asked["collate"]:
        return len, None
    from llaso.training.rows.collator import Collator, RowEncoder
    from modeling_llaso.conversion import new_processor
    processor = new_processor(asked["encoder"], asked["llm"], audio_padding="trim")
    return Collator(RowEncoder(processor, 2048)), processor

def asked_of_the_system():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

class Clock:
    def start(self):
        self.begin, self.read = time.perf_counter(), asked_of_the_system()

    def run(self, batches, per_batch, rows):
        """Time the first batch, and the rows after it."""
        batches, seen, opened = iter(batches), 0, time.perf_counter()
        next(batches)
        first = time.perf_counter()
        for _ in batches:
            seen += per_batch
            if seen >= rows:
                break
        end = time.perf_counter()
        print(json.dumps({
            "open": opened - self.begin, "first": first - opened, "rows_per_second": seen / (end - first),
            "bytes": asked_of_the_system() - self.read,
            "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }), flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(0)
'''


def write_corpus(folder: Path, rows: int, seconds: float, processor: LlasoProcessor) -> Path:
    """Write a corpus of noise with transcripts, in files and row groups as a build writes them.

    Args:
        folder: made anew.
        rows: of its training split; they differ in their ids, and a thousand clips take turns.
        seconds: of sound of a row in the mean.
        processor: counts the column `length`.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    samples = [int(16_000 * seconds * random.uniform(0.5, 1.5)) for _ in range(CLIPS)]
    clips = pa.Table.from_pylist(
        [_row(number, 0.1 * random.standard_normal(size), processor) for number, size in enumerate(samples)],
        schema=FEATURES.arrow_schema,
    )
    place = clips.schema.get_field_index("id")
    for start in range(0, rows, OF_FILE):
        path = folder / f"train-{start // OF_FILE:05}.parquet"
        with pq.ParquetWriter(path, clips.schema, compression="zstd") as writer:
            for first in range(start, min(rows, start + OF_FILE), ROW_GROUP):
                ids = [f"row-{number:08}" for number in range(first, min(rows, first + ROW_GROUP))]
                group = clips.take(random.integers(CLIPS, size=len(ids)))
                writer.write_table(group.set_column(place, clips.schema.field(place), pa.array(ids)))
    return folder


def _row(number: int, samples: np.ndarray, processor: LlasoProcessor) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="FLAC")
    said = " ".join(["one"] * (1 + number % 9))
    question = [{"type": "text", "text": "Transcribe the spoken words."}, {"type": "audio", "text": None}]
    row: dict[str, Any] = {
        "task": "ASR",
        "modality": "text_audio",
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
        ],
        "audio": [{"bytes": file.getvalue(), "path": f"{number}.flac"}],
        "target": said,
        "duration": len(samples) / 16_000,
    }
    return row | {"length": row_length(row, processor)}


class Bench:
    """Runs loaders in fresh processes, each corpus with a cache folder of its own for each loader.

    Args:
        folder: for corpora, caches and backbones.
        old: folder of a worktree of an earlier commit, or None.
    """

    def __init__(self, folder: Path, old: Path | None) -> None:
        self.folder, self.old = folder, old
        (folder / "benchmarks_loading.py").write_text(HELPERS)
        self.encoder, self.llm = save_backbones(folder / "backbones")
        self.processor = new_processor(str(self.encoder), str(self.llm), audio_padding="trim")

    @property
    def loaders(self) -> list[str]:
        """The loaders to measure."""
        return ["here"] if self.old is None else ["here", "numbered", "stream"]

    def environment(self, loader: str, corpus: Path) -> dict[str, str]:
        """Return the environment in which a loader of its commit runs, with its own cache."""
        code = ROOT if loader == "here" else self.old
        return os.environ | {
            "PYTHONPATH": f"{code}{os.pathsep}{self.folder}",
            "HF_DATASETS_CACHE": str(self.cache(loader, corpus)),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def cache(self, loader: str, corpus: Path) -> Path:
        """Return the folder in which a loader keeps what it makes of a corpus."""
        return self.folder / f"cache-{corpus.name}-{loader}"

    def measure(
        self, loader: str, corpus: Path, rows: int, *, step: int = 0, workers: int = 0, collate: bool = False,
        rank: int = 0, world: int = 1,
    ) -> dict[str, float]:  # fmt: skip
        """Open a corpus, read its first batch from a step on and then so many rows; see `Clock.run` for figures."""
        asked = {
            "loader": loader, "corpus": str(corpus), "rows": rows, "step": step, "workers": workers, "rank": rank,
            "collate": collate, "world": world, "per_device": PER_DEVICE, "parallel": PARALLEL,
            "encoder": str(self.encoder), "llm": str(self.llm),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", NEW if loader == "here" else OLD, json.dumps(asked)],
            env=self.environment(loader, corpus), cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    def kill_and_resume(self, loader: str, corpus: Path, name: str) -> float:
        """Train, kill the run after a checkpoint, run it again; return the seconds to the first step after it."""
        out = self.folder / f"run-{loader}-{name}"
        recipe = {
            "model": {"encoder": str(self.encoder), "llm": str(self.llm), "audio_padding": "trim"},
            "data": {"path": str(corpus)} | ({"streaming": True} if loader == "stream" else {}),
            "batch": {"per_device": PER_DEVICE, "accumulation": PARALLEL},
            "optimizer": {"learning_rate": 1e-3, "max_steps": 10_000},
            "compute": {"precision": "fp32"},
            "watch": {"log_every": 1, "save_every": KILLED_AT - 2, "final_rows": 0, "reporters": ["none"]},
            "out": str(out),
        }
        file = self.folder / f"{out.name}.json"
        file.write_text(json.dumps(recipe))
        self._train_until(loader, corpus, file, KILLED_AT)
        start = time.perf_counter()
        self._train_until(loader, corpus, file, KILLED_AT - 1)
        return time.perf_counter() - start

    def _train_until(self, loader: str, corpus: Path, recipe: Path, step: int) -> None:
        """Run `llaso train` until it reports a step, and kill it."""
        with subprocess.Popen(
            [sys.executable, "-m", "llaso.cli", "train", str(recipe)],
            env=self.environment(loader, corpus), cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.split()[:1] == ["step"] and line.split()[1].split("/")[0] == f"{step}":
                    process.send_signal(signal.SIGKILL)
                    return
            raise RuntimeError(f"the run ended before step {step}:\n{''.join(lines[-20:])}")


def tables(short: int = 1_000_000, spoken: int = 2_000, rounds: int = 3, old: str | None = None) -> Iterator[str]:
    """Yield the tables, as Markdown.

    Args:
        short: rows of a tenth of a second.
        spoken: rows of eight seconds.
        rounds: of the figures of rows a second, each loader in turn; median, least and most are given.
        old: a commit whose loaders are measured as well.
    """
    with tempfile.TemporaryDirectory() as temporary, worktree(old) as earlier:
        bench = Bench(Path(temporary), earlier)
        corpus = write_corpus(bench.folder / "short", short, 0.1, bench.processor)
        size = _bytes_in(corpus)
        yield f"{short:,} rows of a tenth of a second, {size / 1e6:,.0f} MB\n"
        starts = "first start s | copied MB | second start s | start at 1/10 s | start at 9/10 s | kill to next step s"
        yield f"| loader | {starts} | MB of memory | MB read by the last start |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for loader in bench.loaders:
            runs = [bench.measure(loader, corpus, PER_DEVICE)]
            kept = _bytes_in(bench.cache(loader, corpus))
            for tenths in (0, 1) if loader == "stream" else (0, 1, 9):  # nine tenths of the rows would be read again
                step = short // (PER_DEVICE * PARALLEL) * tenths // 10
                runs.append(bench.measure(loader, corpus, PER_DEVICE, step=step))
            killed = bench.kill_and_resume(loader, corpus, "killed")
            seconds = [f"{run['open'] + run['first']:.1f}" for run in runs] + ["–"] * (4 - len(runs))
            seconds.insert(1, f"{kept / 1e6:,.0f}")
            memory, read = max(run["mb"] for run in runs), runs[-1]["bytes"] / 1e6
            yield f"| {loader} | {' | '.join(seconds)} | {killed:.1f} | {memory:,.0f} | {read:,.1f} |"
        corpus = write_corpus(bench.folder / "spoken", spoken, 8.0, bench.processor)
        size = _bytes_in(corpus)
        yield f"\n{spoken:,} rows of eight seconds, {size / 1e6:,.0f} MB; rows a second\n"
        yield "| loader | read only | decoded and transformed by 1 worker | by 2 workers |"
        yield "|---|---|---|---|"
        settings: list[dict[str, Any]] = [{}, *({"collate": True, "workers": workers} for workers in (1, 2))]
        if "numbered" in bench.loaders:
            bench.measure("numbered", corpus, PER_DEVICE)  # makes its copy
        found: dict[str, list[list[float]]] = {loader: [[] for _ in settings] for loader in bench.loaders}
        for _ in range(rounds):
            for place, setting in enumerate(settings):
                for loader in bench.loaders:
                    rows = spoken // 2 if not setting else min(spoken // 2, COLLATED)
                    found[loader][place].append(bench.measure(loader, corpus, rows, **setting)["rows_per_second"])
        for loader, figures in found.items():
            yield f"| {loader} | {' | '.join(spread(one, ',.0f') for one in figures)} |"
        epoch = spoken // (PER_DEVICE * PARALLEL) * PER_DEVICE * PARALLEL
        yield f"\nAn epoch of them on {WORLD} processes: bytes that each asks of the system, in parts of the corpus\n"
        yield f"| loader | {' | '.join(f'process {rank}' for rank in range(WORLD))} | one process |"
        yield f"|---|{'---|' * (WORLD + 1)}"
        for loader in bench.loaders:
            if loader != "numbered":  # its copy is mapped into memory, which is not counted
                places = [{"rank": rank, "world": WORLD} for rank in range(WORLD)] + [{}]
                rows = [epoch // place.get("world", 1) - PER_DEVICE for place in places]
                read = [
                    bench.measure(loader, corpus, count, **place)["bytes"] / size
                    for count, place in zip(rows, places, strict=True)
                ]
                yield f"| {loader} | {' | '.join(f'{part:.2f}' for part in read)} |"


@contextmanager
def worktree(commit: str | None) -> Iterator[Path | None]:
    """Check an earlier commit out beside this one, for as long as it is measured."""
    if commit is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "old"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(folder), commit], cwd=ROOT, check=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def save_backbones(folder: Path) -> tuple[Path, Path]:
    """Save a tiny Whisper encoder and a tiny Llama, so that a step takes next to no time."""
    encoder, llm = folder / "encoder", folder / "llm"
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64}
    WhisperModel(WhisperConfig(**heads, **ids, **sizes)).save_pretrained(encoder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(encoder)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet))
    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=marks[0], eos_token=marks[-1])
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.save_pretrained(llm)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True,
        )
    ).save_pretrained(llm)  # fmt: skip
    return encoder, llm


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=1_000_000, help="rows of a tenth of a second (default 1,000,000)")
    parser.add_argument("--spoken", type=int, default=2_000, help="rows of eight seconds (default 2,000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loader (default 3)")
    parser.add_argument("--old", help="a commit whose loaders are measured as well")
    arguments = parser.parse_args()
    if min(arguments.short, arguments.spoken) < 400 or arguments.rounds < 1:
        parser.error("--short and --spoken must be 400 or more, --rounds 1 or more")
    for line in tables(arguments.short, arguments.spoken, arguments.rounds, arguments.old):
        print(line, flush=True)


if __name__ == "__main__":
    main()
