"""`llaso convert`, `new`, `transcribe` and `ask`: checkpoints in and out, and a model's answers about audio files."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from llaso_common.output_folder import refuse_existing, refuse_existing_file, replaced_folder

from ..alignment import BEAMS
from .option_types import (
    DTYPES,
    add_ctc_weight,
    add_output_file,
    add_speech_finder,
    at_least_1,
    beams,
    device,
    seed,
    some_text,
    stride,
)


def add_parser(commands) -> None:
    """Add these commands to the `llaso` parser."""
    convert = commands.add_parser("convert", help="turn a checkpoint of the released code into ours, or back")
    direction = convert.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from-official", type=some_text, metavar="DIR", help="a checkpoint in the released format"
    )
    direction.add_argument(
        "--to-official", type=some_text, metavar="DIR", help="one of our checkpoints, to be written as released"
    )
    convert.add_argument(
        "--encoder", type=some_text, metavar="DIR", help="the encoder's folder, if the checkpoint does not name it"
    )
    _add_out(convert)
    convert.set_defaults(run=run_convert)

    new = commands.add_parser("new", help="an untrained LLaSO from a Whisper and a language model")
    new.add_argument("--encoder", type=some_text, metavar="ID_OR_DIR", required=True, help="any Whisper")
    new.add_argument(
        "--llm", type=some_text, metavar="ID_OR_DIR", required=True, help="a Llama, Qwen, Mistral or Gemma causal LM"
    )
    _add_out(new)
    new.add_argument(
        "--audio-padding", choices=("full", "trim"), default="full", help="full as released; trim is fast"
    )
    new.add_argument("--projector-stride", type=stride, default=1, metavar="N", help="encoder vectors per audio token")
    new.add_argument("--projector-pooling", choices=("average", "concatenate"), default="average")
    new.add_argument("--projector-norm", action="store_true", help="normalize the projected vectors (RMSNorm)")
    new.add_argument("--projector", type=some_text, metavar="FILE", help="a stage-1 artefact: mm_audio_aligner.bin")
    new.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="auto keeps the language model's",
    )
    new.add_argument("--seed", type=seed, default=0, help="of the projector")
    new.set_defaults(run=run_new)

    transcribe = commands.add_parser(
        "transcribe",
        help="write down what is said in audio files",
        description="Transcribe recordings of any length. Recordings longer than the encoder's window are cut at "
        "pauses. A file that cannot be read is named, and the others are transcribed; the exit code is then 2. With "
        "--out, the same command continues after an interruption.",
    )
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="audio files")
    _add_model(transcribe)
    add_ctc_weight(transcribe)
    transcribe.add_argument(
        "--beams",
        type=beams,
        default=BEAMS,
        metavar="N",
        help="hypotheses that are followed if CTC has a weight (default: %(default)s)",
    )
    _add_output(transcribe, "text", "json", "srt", "vtt")
    add_speech_finder(transcribe)
    transcribe.set_defaults(run=run_transcribe)

    ask = commands.add_parser(
        "ask",
        help="ask a question about audio files",
        description="Ask a question about each of several audio files. A file about which it cannot be asked is "
        "named, the others are answered, and the exit code is 2.",
    )
    ask.add_argument("files", nargs="+", metavar="FILE", help="audio files")
    ask.add_argument("question", help="what to ask about each file")
    _add_model(ask)
    _add_output(ask, "text", "json")
    ask.set_defaults(run=run_ask)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=some_text, metavar="DIR", required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace the model that --out holds")


def _refuse_to_lose(arguments: argparse.Namespace, *sources: str | None) -> None:
    """Refuse an output folder that holds something, unless it is a model that `--overwrite` replaces.

    Args:
        arguments: with `out` and `overwrite`.
        sources: what is read, None if not given. It may not lie in the output folder, which is replaced as a whole.
    """
    out = Path(arguments.out)
    for source in filter(None, sources):
        if Path(source).exists() and Path(source).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"--out {out} holds {source}, which is read; write to another folder")
    refuse_existing(out, arguments.overwrite)
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ValueError(f"{out} holds no model (config.json is missing), so --overwrite does not replace it")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=some_text, metavar="ID_OR_DIR", required=True)
    parser.add_argument("--max-new-tokens", type=at_least_1, default=256, metavar="N")
    parser.add_argument("--device", type=device, help="cpu, cuda, …; by default the GPU if there is one")


def _add_output(parser: argparse.ArgumentParser, *formats: str) -> None:
    parser.add_argument("--format", choices=formats, default="text", help="json: one object a line")
    add_output_file(parser, "write the texts here; printed by default")


def run_convert(arguments: argparse.Namespace) -> None:
    """Convert a checkpoint and say where it lies."""
    _refuse_to_lose(arguments, arguments.from_official, arguments.to_official, arguments.encoder)
    from modeling_llaso.conversion import from_official, to_official
    from modeling_llaso.loading import load

    if arguments.from_official is not None:
        model, processor = from_official(arguments.from_official, arguments.encoder)
        with replaced_folder(arguments.out) as out:
            model.save_pretrained(out)
            processor.save_pretrained(out)
    else:
        model, processor = load(arguments.to_official, device="cpu")
        with replaced_folder(arguments.out) as out:
            to_official(model, processor, out)
    print(f"{model.num_parameters():,} parameters in {arguments.out}")


def run_new(arguments: argparse.Namespace) -> None:
    """Make an untrained model and say where it lies."""
    _refuse_to_lose(arguments, arguments.encoder, arguments.llm, arguments.projector)
    from modeling_llaso.conversion import new_model

    model, processor = new_model(
        arguments.encoder,
        arguments.llm,
        audio_padding=arguments.audio_padding,
        projector_stride=arguments.projector_stride,
        projector_pooling=arguments.projector_pooling,
        projector_norm=arguments.projector_norm,
        projector=arguments.projector,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    with replaced_folder(arguments.out) as out:
        model.save_pretrained(out)
        processor.save_pretrained(out)
    print(f"{model.num_parameters():,} parameters in {arguments.out}; its projector is untrained")


def run_transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe files; return exit code 2 if any of them could not be read."""
    from modeling_llaso.loading import load

    from ..transcription.speech_finders import speech_finder
    from ..transcription.transcriber import Transcriber
    from .transcribe_files import transcribe_files

    refuse_existing_file(arguments.out, arguments.overwrite, arguments.files)

    finder = speech_finder(arguments.speech_finder)
    arguments.goes_on = arguments.out is not None

    def load_transcriber() -> Transcriber:
        loaded = load(arguments.model, arguments.device)
        return Transcriber(
            *loaded,
            max_new_tokens=arguments.max_new_tokens,
            finder=finder,
            ctc_weight=arguments.ctc_weight,
            beams=arguments.beams,
        )

    return 2 if transcribe_files(arguments.files, load_transcriber, arguments.format, arguments.out) else 0


def run_ask(arguments: argparse.Namespace) -> int:
    """Write the answer to a question about each file, with the file's name before it if there are several.

    Returns:
        The exit code: 0, or 2 if any file failed; each was named, and the others were answered.
    """
    from tqdm import tqdm

    from llaso_common.audio import read_audio
    from modeling_llaso.loading import load

    from .transcribe_files import shown_name

    if not arguments.question.strip():
        raise ValueError("the question is empty")
    refuse_existing_file(arguments.out, arguments.overwrite, arguments.files)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    elif sys.stdout is None:
        raise ValueError("the standard output is closed, and the answers would be lost; name a file with --out")
    message = {"role": "user", "content": [{"type": "text", "text": arguments.question}, {"type": "audio"}]}
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    model: Any = None
    processor: Any = None
    several, failed = len(arguments.files) > 1, 0
    # Answers that go to a terminal are their own progress, and would run into the bar.
    bar = several and sys.stderr.isatty() and (arguments.out is not None or not sys.stdout.isatty())
    with ExitStack() as stack:
        out: TextIO | None = None if arguments.out else sys.stdout
        for file in tqdm(arguments.files, unit="file", disable=not bar):
            try:
                clip = read_audio(file)
            except (ValueError, OSError) as error:
                failed += 1
                print(f"llaso: error: {error}", file=sys.stderr)
                continue
            if model is None:  # loaded once a file is worth it; what is wrong with the model ends the command
                model, processor = load(arguments.model, arguments.device)
            try:
                inputs = processor.apply_chat_template([message], audio=[clip], **options)
            except ValueError as error:
                failed += 1
                print(f"llaso: error: {file}: {error}", file=sys.stderr)
                continue
            generated = model.generate(**inputs.to(model.device), max_new_tokens=arguments.max_new_tokens)
            answer = generated[0, inputs["input_ids"].shape[1] :]
            text = processor.decode(answer, skip_special_tokens=True).strip()
            if arguments.format == "json":
                line = json.dumps({"file": shown_name(file), "text": text}, ensure_ascii=False)
            else:
                line = f"{shown_name(file)}: {text}" if several else text
            if out is None:  # opened at the first answer: a file that is there is not emptied for nothing
                out = stack.enter_context(open(arguments.out, "w", encoding="utf-8"))
            print(line, file=out, flush=True)
    return 2 if failed else 0
