"""`make bench`: one section of measurements, by default the model's.

`make bench ARGS="data --rows 100000"` runs another; `ARGS="scoring --help"` says what a section takes.
"""

from __future__ import annotations

import argparse
import runpy
import sys

from llaso_common.plain_message import plain_message

SECTIONS = {
    "model": "training step and generation: LLaSO, the released way and transformers' own peers",
    "profile": "which operators one model's time goes to",
    "data": "how fast corpora are planned and built",
    "scoring": "how long scoring takes",
    "loading": "how training reads its rows",
    "padding": "how much of a batch is padding",
    "transcripts": "word error rates of a model and of a Whisper on a manifest, by source",
    "transcripts_plot": "a picture of what `transcripts` measured, several models in one",
    "hearing": "what a Whisper hears in trim against full",
    "voice": "what a model's audio vectors keep of a voice, such as the speaker's gender",
    "packing": "training on unequal rows, padded and end to end",
    "exported": "what files for llama.cpp hear, by type of weights",
    "serving": "many clients at a server against one",
    "digits_model": "trains a small model on spoken digits, for the next two",
    "transcription": "an hour of speech against its pieces given by hand, and live",
    "word_times": "how well attention tells when a word is said",
    "training": "transforms, checkpoints and steps of a training run",
    "training_gpu": "training on a GPU at full size",
}


def main() -> None:
    sections = "\n".join(f"  {name:<18}{what}" for name, what in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\nsections:\n{sections}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("section", choices=SECTIONS, nargs="?", default="model")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the section")
    chosen = parser.parse_args()
    sys.argv[1:] = chosen.arguments
    try:
        runpy.run_module(f"benchmarks.{chosen.section}", run_name="__main__", alter_sys=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"benchmarks {chosen.section}: error: {plain_message(error)}") from error


if __name__ == "__main__":
    main()
