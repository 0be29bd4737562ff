"""Transcribes a manifest with models and tables their word error rates by source.

`python -m benchmarks transcripts MODEL --speech MANIFEST [--whisper DIR] [--ctc-corpus CORPUS]` compares a checkpoint
with a Whisper's own decoder on the same clips and, if the checkpoint was aligned by CTC, with the best path of its
projected audio, which no LLM has read. Intervals, of rates and of their differences, are of speakers drawn with
replacement; a character error rate stands in parentheses. With a corpus, a table says how many words were wrong among
those that its transcripts never have, and among those that they have seldom or often. Three clips of each source are
shown with every transcript: the best, the median and the worst by the first program's word error rate.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from transformers import AutoConfig

from benchmarks.hearing import WhisperBaseline
from benchmarks.manifests import evenly, read_manifest
from eval_suite.intervals import Resampler
from llaso.alignment.alignment import best_paths, saved_alignment
from llaso.commands.option_types import at_least_1, path
from llaso.training.recipe.recipe import DataChoice, Recipe
from llaso.training.rows.corpora import open_corpus
from llaso.training.rows.training_rows import pieces_of
from llaso.training.run.ctc_loss import alignment_with, transcripts_of
from llaso.training.run.held_out import normalize, word_errors
from llaso.training.run.resume import RECIPE, recipe_of
from llaso.transcription.transcriber import Transcriber
from llaso_common.atomic_write import write_atomically
from llaso_common.audio import SAMPLE_RATE, read_audio
from llaso_common.output_folder import refuse_existing_file
from modeling_llaso.configuration_llaso import AUDIO_PADDINGS, LlasoConfig
from modeling_llaso.loading import load

DRAWS = 2000
"""Resamples of the speakers for an interval."""
LEVELS = (0.025, 0.975)
"""Quantiles of the draws at which an interval begins and ends."""
AT_ONCE = 8
TOKENS = 224
"""Of a transcript at most, as in Whisper's own decoder."""
COUNTS = (0, 1, 5, 20)
"""A word's count in the training's transcripts: where each range of the table begins."""
LLASO, BEST_PATH, WHISPER = "LLaSO", "best path", "Whisper's own decoder"
"""Names of the programs in tables and files."""
SHOWN = {"best": 0.0, "median": 0.5, "worst": 1.0}
"""Clips that are shown, by their place in the order of the first program's word error rates."""


@dataclass(frozen=True)
class ManifestClip:
    """One clip of a manifest."""

    audio: Path
    text: str
    source: str
    speaker: str

    def samples(self) -> np.ndarray:
        """Read the clip, mono at 16 kHz."""
        return read_audio(self.audio, SAMPLE_RATE)


def read_clips(manifest: Path, most: int = 0) -> list[ManifestClip]:
    """List the clips of a manifest, whose rows may have a `speaker`; without one a clip is its own.

    Args:
        manifest: paths in it are relative to its folder.
        most: clips of each source; 0 means all.
    """
    return [
        ManifestClip(file := manifest.parent / row["audio"], row["text"], source, str(row.get("speaker") or file))
        for source, found in read_manifest(manifest).items()
        for row in (evenly(found, most) if most else found)
    ]


def batches(clips: Sequence[ManifestClip]) -> Iterator[Sequence[ManifestClip]]:
    """Yield the clips in batches."""
    for start in range(0, len(clips), AT_ONCE):
        yield clips[start : start + AT_ONCE]


def load_padded(checkpoint: str, audio_padding: str | None) -> tuple[Any, Any]:
    """Load a checkpoint and, unless `audio_padding` is None, pad audio in that way instead of as it was trained."""
    model, processor = load(checkpoint, "cpu")
    if audio_padding:
        model.config.audio_padding = processor.audio_padding = audio_padding
    if audio_padding == "full":
        processor.audio_tail = 0.0  # silence fills the window anyway
    return model, processor


def by_model(
    checkpoint: str,
    clips: Sequence[ManifestClip],
    done: Callable[[int], None],
    ctc_weight: float | None = None,
    audio_padding: str | None = None,
) -> list[str]:
    """Transcribe clips with a checkpoint, as `llaso transcribe` does."""
    loaded = load_padded(checkpoint, audio_padding)
    transcriber = Transcriber(*loaded, max_new_tokens=TOKENS, ctc_weight=ctc_weight)
    heard: list[str] = []
    for batch in batches(clips):
        heard += [text for text, _, _ in transcriber.transcribe([clip.samples() for clip in batch])]
        done(len(heard))
    return heard


def aligned_by(checkpoint: str) -> Recipe:
    """Return the recipe of the training that aligned a checkpoint by CTC: its own, or that of what it began from.

    Raises:
        ValueError: there is none.
    """
    folder: str | None = checkpoint
    while folder and Path(folder, RECIPE).is_file():
        recipe = recipe_of(Path(folder))
        if recipe.optimizer.ctc_weight > 0:
            return recipe
        folder = recipe.model.checkpoint
    raise ValueError(
        f"{checkpoint} has no best path: its config.json has no ctc_alignment, and neither beside it nor beside what "
        f"it began from is there a {RECIPE} with optimizer.ctc_weight above 0; name the folder of Stage 1 with "
        "--aligned, or omit --ctc-corpus"
    )


def check_best_path(checkpoint: str) -> None:
    """Raise a ValueError, before an hour of transcription, if a checkpoint has no best path."""
    if LlasoConfig.from_pretrained(checkpoint).ctc_alignment is None:
        aligned_by(checkpoint)


def by_best_path(
    checkpoint: str,
    corpus: str,
    clips: Sequence[ManifestClip],
    done: Callable[[int], None],
    audio_padding: str | None = None,
) -> list[str]:
    """Read the best path of the projected audio, among the tokens that the checkpoint keeps, or those of a corpus."""
    model, processor = load_padded(checkpoint, audio_padding)
    alignment = saved_alignment(model)
    if alignment is None:  # of an earlier version of llaso
        pieces = pieces_of(aligned_by(checkpoint), processor)
        alignment = alignment_with(model, processor, open_corpus(DataChoice(path=corpus)), pieces)
    heard: list[str] = []
    for batch in batches(clips):
        inputs = processor.apply_transcription_request([clip.samples() for clip in batch])
        heard += best_paths(alignment, model, processor, inputs)
        done(len(heard))
    return heard


def check_whisper(whisper: str) -> None:
    """Raise a ValueError, before an hour of transcription, if there is no Whisper by this name."""
    try:
        kind = AutoConfig.from_pretrained(whisper).model_type
    except (OSError, ValueError):
        kind = ""
    if kind != "whisper":
        raise ValueError(f"--whisper {whisper}: no Whisper was found in such a folder or on the Hub; check the name")


def by_whisper(whisper: str, clips: Sequence[ManifestClip], done: Callable[[int], None]) -> list[str]:
    """Transcribe clips with a Whisper's own decoder, on whole windows."""
    baseline, heard = WhisperBaseline(whisper), []
    for clip in clips:
        heard.append(baseline.transcribe(baseline.states(clip.samples(), None)[-1], TOKENS)[0])
        done(len(heard))
    return heard


def _drawn(clips: Sequence[ManifestClip], heard: Sequence[str]) -> dict[str, tuple[list[int], np.ndarray, np.ndarray]]:
    """Return by source its clips' places, their errors and words, and the rate of each draw; draws are alike."""
    places: dict[str, list[int]] = {}
    for place, clip in enumerate(clips):
        places.setdefault(clip.source, []).append(place)
    draws = Resampler({name: [clips[n].speaker for n in found] for name, found in places.items()}, DRAWS, seed=0)
    result = {}
    for name, found in places.items():
        counts = np.array([word_errors(heard[n], clips[n].text) for n in found], dtype=float)
        drawn = draws.sums({name: counts})[name]
        result[name] = found, counts, drawn[:, 0] / drawn[:, 1]
    return result


def rates(clips: Sequence[ManifestClip], heard: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return errors, words, word error rate and its interval, and character error rate, by source."""
    result = {}
    for name, (found, counts, drawn) in _drawn(clips, heard).items():
        errors, words = counts.sum(0)
        speakers = len({clips[n].speaker for n in found})
        letters = [(normalize(heard[n]), normalize(clips[n].text)) for n in found]
        wrong = sum(Levenshtein.distance(*pair) for pair in letters)
        result[name] = {"clips": len(found), "speakers": speakers, "errors": int(errors), "words": int(words)} | {
            "wer": errors / words,
            "interval": np.quantile(drawn, LEVELS).tolist(),
            "cer": wrong / sum(len(said) for _, said in letters),
        }
    return result


def differences(
    clips: Sequence[ManifestClip], heard: Sequence[str], other: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return by source one program's word error rate less another's, with its interval; both have the same draws."""
    pairs = zip(_drawn(clips, heard).items(), _drawn(clips, other).values(), strict=True)
    result = {}
    for (name, (_, counts, drawn)), (_, of_other, drawn_of_other) in pairs:
        (errors, words), (other_errors, _) = counts.sum(0), of_other.sum(0)
        interval = np.quantile(drawn - drawn_of_other, LEVELS).tolist()
        result[name] = {"difference": (errors - other_errors) / words, "interval": interval}
    return result


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Write the rates as a Markdown table, a line for each program; character error rates in parentheses."""
    sources = next(iter(found.values()))
    head = [f"{name} ({entry['clips']} clips, {entry['speakers']} speakers)" for name, entry in sources.items()]
    rows = []
    for program, of_sources in found.items():
        cells = [
            f"{one['wer']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}] ({one['cer']:.3f})"
            for one in of_sources.values()
        ]
        rows.append([program, *cells])
    return _markdown(["word error rate (of characters)", *head], rows)


def differences_table(compared: dict[str, dict[str, dict[str, Any]]], deciding: str) -> str:
    """Write the differences as a Markdown table, a line for each program that `deciding` is compared with."""
    rows = []
    for program, of_sources in compared.items():
        cells = [
            f"{one['difference']:+.3f} [{one['interval'][0]:+.3f}, {one['interval'][1]:+.3f}]"
            for one in of_sources.values()
        ]
        rows.append([program, *cells])
    return _markdown([f"{deciding} less …", *next(iter(compared.values()))], rows)


def words_of(corpus: str) -> Counter[str]:
    """Count the words of a corpus's transcripts to train on."""
    texts = transcripts_of(open_corpus(DataChoice(path=corpus)))
    return Counter(word for text in texts for word in normalize(text).split())


def wrong_by_count(
    clips: Sequence[ManifestClip], heard: Sequence[str], trained: Counter[str]
) -> dict[str, list[tuple[int, int]]]:
    """Count by source the words that were left out or replaced, and all words, for each range of `COUNTS`.

    Args:
        clips: what was said.
        heard: transcripts.
        trained: how often the training says a word.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for clip, text in zip(clips, heard, strict=True):
        said = normalize(clip.text).split()
        steps = Levenshtein.opcodes(said, normalize(text).split())
        wrong = {n for step in steps if step.tag in ("replace", "delete") for n in range(step.src_start, step.src_end)}
        counts = found.setdefault(clip.source, [(0, 0)] * len(COUNTS))
        for n, word in enumerate(said):
            place = bisect.bisect_right(COUNTS, trained[word]) - 1
            counts[place] = counts[place][0] + (n in wrong), counts[place][1] + 1
    return found


def count_table(counted: dict[str, dict[str, list[tuple[int, int]]]]) -> str:
    """Write the shares of wrong words as a Markdown table, a line for each source and program."""
    ends = [f"{low} to {high - 1}" if high - low > 1 else str(low) for low, high in itertools.pairwise(COUNTS)]
    rows = []
    for source in next(iter(counted.values())):
        for program, of_sources in counted.items():
            cells = [f"{wrong / words:.0%} of {words}" if words else "–" for wrong, words in of_sources[source]]
            rows.append([f"{source}, {program}", *cells])
    head = ["words wrong, by how often the training says them", *ends, f"{COUNTS[-1]} and more"]
    return _markdown(head, rows)


def shown(clips: Sequence[ManifestClip], transcripts: dict[str, list[str]], deciding: str) -> str:
    """Write the best, the median and the worst clip of each source, by one program's word error rate."""
    names = list(transcripts)
    rows = []
    for source in dict.fromkeys(clip.source for clip in clips):
        places = [n for n, clip in enumerate(clips) if clip.source == source]

        def rate(n: int) -> tuple[float, int]:
            errors, words = word_errors(transcripts[deciding][n], clips[n].text)
            return errors / max(1, words), n  # equal rates by their place in the manifest

        places.sort(key=rate)
        for label, share in SHOWN.items():
            n = places[round(share * (len(places) - 1))]
            cells = [clips[n].text, *(transcripts[name][n] for name in names)]
            rows.append([source, f"{label}: {clips[n].audio.name}", *map(_short, cells)])
    return _markdown(["source", "clip", "reference", *names], rows)


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.replace("|", " ").split())
    return text if len(text) <= most else f"{text[:most]} …"


def progress(name: str, total: int) -> Callable[[int], None]:
    """Return what prints a line each tenth of the way."""
    tenths = 0

    def done(count: int) -> None:
        nonlocal tenths
        if count * 10 // total > tenths:
            tenths = count * 10 // total
            print(f"{name}: {count:,}/{total:,} clips", flush=True)

    return done


def main(arguments: Iterable[str] | None = None) -> None:
    """Transcribe, and write transcripts, numbers and tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks transcripts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a LLaSO checkpoint: a folder or a Hub id")
    parser.add_argument("--speech", type=Path, required=True, metavar="MANIFEST", help="JSON lines: audio, text")
    parser.add_argument("--whisper", metavar="DIR", help="a Whisper with its decoder: a folder or a Hub id")
    parser.add_argument(
        "--ctc-corpus",
        metavar="CORPUS",
        help="also read the best path, and count wrong words by how often this corpus's transcripts have them; its "
        "tokens are read only if the checkpoint keeps none",
    )
    parser.add_argument("--aligned", metavar="DIR", help="the checkpoint of the best path, if it is another (Stage 1)")
    parser.add_argument("--ctc-weight", type=float, metavar="W", help="as of `llaso transcribe`; 0: the LLM alone")
    parser.add_argument(
        "--best-path-only", action="store_true", help="do not let the LLM transcribe; needs --ctc-corpus"
    )
    parser.add_argument(
        "--audio-padding", choices=AUDIO_PADDINGS, help="pad audio in this way, however the checkpoints were trained"
    )
    parser.add_argument("--clips", type=at_least_1, help="of each source at most (default: all)")
    parser.add_argument("--out", type=path, default=Path("runs/transcripts"), help="folder for .json and .md")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier transcripts.json there")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if chosen.best_path_only and not chosen.ctc_corpus:
        parser.error("--best-path-only needs --ctc-corpus")
    if chosen.best_path_only and (chosen.aligned or chosen.ctc_weight is not None):
        parser.error("--best-path-only reads MODEL without its LLM; omit --aligned and --ctc-weight")
    record_file = chosen.out / "transcripts.json"
    refuse_existing_file(record_file, chosen.overwrite)
    chosen.out.mkdir(parents=True, exist_ok=True)
    clips = read_clips(chosen.speech, chosen.clips or 0)
    trained = words_of(chosen.ctc_corpus) if chosen.ctc_corpus else None
    if chosen.whisper:
        check_whisper(chosen.whisper)
    padding = chosen.audio_padding
    programs: dict[str, Callable[[Callable[[int], None]], list[str]]] = {}
    if not chosen.best_path_only:
        programs[LLASO] = lambda done: by_model(chosen.model, clips, done, chosen.ctc_weight, padding)
    if chosen.ctc_corpus:
        aligned = chosen.aligned or chosen.model
        check_best_path(aligned)
        programs[BEST_PATH] = lambda done: by_best_path(aligned, chosen.ctc_corpus, clips, done, padding)
    if chosen.whisper:
        programs[WHISPER] = lambda done: by_whisper(chosen.whisper, clips, done)
    transcripts = {name: program(progress(name, len(clips))) for name, program in programs.items()}
    found = {name: rates(clips, heard) for name, heard in transcripts.items()}
    mine, *others = transcripts
    compared = {name: differences(clips, transcripts[mine], transcripts[name]) for name in others}
    counted: dict[str, dict[str, list[tuple[int, int]]]] = {}
    if trained is not None:
        counted = {name: wrong_by_count(clips, heard, trained) for name, heard in transcripts.items()}
    tables = [
        table(found),
        *([differences_table(compared, mine)] if compared else []),
        *([count_table(counted)] if counted else []),
        shown(clips, transcripts, mine),
    ]
    text = "\n\n".join(tables) + "\n"
    rows = [
        {"audio": str(clip.audio), "source": clip.source, "speaker": clip.speaker, "text": clip.text}
        | {name: heard[n] for name, heard in transcripts.items()}
        for n, clip in enumerate(clips)
    ]
    record = {"rates": found, "differences": compared, "wrong_by_count": counted, "clips": rows}
    write_atomically(record_file, json.dumps(record, indent=1, ensure_ascii=False))
    write_atomically(chosen.out / "transcripts.md", text)
    print(f"\n{text}\nwrote {chosen.out}")


if __name__ == "__main__":
    main()
