"""`llaso export`: a model as files that other programs run, and what those programs make of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .option_types import at_least_1, some_text

if TYPE_CHECKING:
    from ..exporting.exported_model import ExportedLlaso
    from ..exporting.llama_cpp_check import ClipComparison
    from ..exporting.parts_check import PartsComparison


def add_parser(commands) -> None:
    """Add `export` to the `llaso` parser."""
    export = commands.add_parser(
        "export", help="write a model for llama.cpp, ONNX Runtime or ExecuTorch, and check its answers there"
    )
    actions = export.add_subparsers(dest="action", metavar="ACTION", required=True)

    gguf = actions.add_parser(
        "gguf",
        help="write two GGUF files for llama.cpp",
        description="Write a model as GGUF files for llama.cpp: model.gguf, the language model, and mmproj.gguf, the "
        'encoder and the projector. The model must have been made with audio_padding="full".',
    )
    gguf.add_argument(
        "--type",
        choices=("f16", "f32", "q8_0"),
        default="f16",
        help="of the weights; q8_0 quantizes the language model to 8 bits and keeps the encoder in half precision",
    )
    gguf.set_defaults(run=run_gguf)

    onnx = actions.add_parser(
        "onnx",
        help="write ONNX files, which run without PyTorch",
        description="Write a model as ONNX files in single precision: audio.onnx, embed.onnx and decoder.onnx, with "
        "the tokenizer and llaso_onnx.json, which says how they fit.",
    )
    onnx.set_defaults(run=run_onnx)

    executorch = actions.add_parser(
        "executorch",
        help="write ExecuTorch programs, for phones",
        description="Write a model as ExecuTorch programs in single precision, computed by XNNPACK: audio.pte, "
        "embed.pte and decoder.pte, with the tokenizer and llaso_executorch.json, which says how they fit.",
    )
    executorch.add_argument(
        "--context",
        type=at_least_1,
        default=1024,
        metavar="TOKENS",
        help="the longest prompt, with its audio and its answer; memory for it is reserved (default: 1024)",
    )
    executorch.set_defaults(run=run_executorch)

    for writer in (gguf, onnx, executorch):
        writer.add_argument("model", type=some_text, metavar="ID_OR_DIR")
        writer.add_argument("out", type=some_text, metavar="OUT", help="the folder to write")
        writer.add_argument("--overwrite", action="store_true", help="replace the files that OUT holds")

    check = actions.add_parser(
        "check",
        help="compare answers of exported files with the model's own",
        description="Ask exported files and the model itself about clips, greedily, and compare prompts, ids and "
        "numbers. GGUF files run in the installed llama.cpp (pip install xllamacpp), ONNX files in ONNX "
        "Runtime, ExecuTorch programs in its Python runtime. Exit code 1: they differ.",
    )
    check.add_argument("folder", type=some_text, metavar="OUT", help="what `llaso export` wrote")
    check.add_argument("clips", nargs="+", metavar="CLIP", help="audio files; for llama.cpp shorter than 29.99 s")
    check.add_argument(
        "--model", type=some_text, metavar="ID_OR_DIR", help="the model that was exported; by default as it was named"
    )
    check.add_argument("--question", type=some_text, help="asked about each clip; by default for a transcription")
    check.add_argument("--max-new-tokens", type=at_least_1, default=32, metavar="N")
    check.set_defaults(run=run_check)


def run_gguf(arguments: argparse.Namespace) -> None:
    """Write the files and say how large they are."""
    _refuse_existing(arguments)
    try:
        from ..exporting.gguf_files import export_gguf
    except ModuleNotFoundError as error:
        raise _without_extra(error, "export") from None
    model, processor = _loaded(arguments.model)
    _print_sizes(export_gguf(model, processor, arguments.out, arguments.type, name=arguments.model))


def run_onnx(arguments: argparse.Namespace) -> None:
    """Write the files and say how large they are."""
    _refuse_existing(arguments)
    try:
        from ..exporting.onnx_files import export_onnx
    except ModuleNotFoundError as error:
        raise _without_extra(error, "onnx") from None
    model, processor = _loaded(arguments.model)
    _print_sizes(export_onnx(model, processor, arguments.out, name=arguments.model))


def run_executorch(arguments: argparse.Namespace) -> None:
    """Write the files and say how large they are."""
    _refuse_existing(arguments)
    try:
        from ..exporting.executorch_files import export_executorch
    except ModuleNotFoundError as error:
        raise _without_extra(error, "executorch") from None
    model, processor = _loaded(arguments.model)
    files = export_executorch(model, processor, arguments.out, arguments.model, arguments.context)
    _print_sizes(files)


def _refuse_existing(arguments: argparse.Namespace) -> None:
    from llaso_common.output_folder import refuse_existing

    from ..exporting.export_folder import refuse_other_folder

    refuse_existing(arguments.out, arguments.overwrite)
    refuse_other_folder(arguments.out)


def _loaded(name: str) -> tuple[Any, Any]:
    from modeling_llaso.loading import load

    return load(name, device="cpu")


def _print_sizes(files: Sequence[Path]) -> None:
    for file in files:
        weights = file.with_name(file.name + ".data")  # of a large ONNX graph
        size = sum(one.stat().st_size for one in (file, weights) if one.is_file())
        print(f"{file}: {size / 1e6:,.1f} MB")


def _without_extra(error: ModuleNotFoundError, extra: str) -> ValueError:
    return ValueError(f"{error.name} is not installed; exporting needs the extra: pip install 'llaso[{extra}]'")


def run_check(arguments: argparse.Namespace) -> int:
    """Compare answers, a line for each clip; return exit code 1 if any differs."""
    from ..exporting.export_folder import exported_model, kind_of_export

    name = arguments.model or exported_model(arguments.folder)
    kind = kind_of_export(arguments.folder)
    return _check_gguf(arguments, name) if kind == "gguf" else _check_parts(arguments, name, kind)


def _check_parts(arguments: argparse.Namespace, name: str, kind: str) -> int:
    from llaso_common.audio import read_audio

    try:
        from ..exporting.parts_check import CLOSE, compare_clip, compare_prompts

        files: ExportedLlaso
        if kind == "onnx":
            from ..exporting.onnx_model import OnnxLlaso

            files = OnnxLlaso(arguments.folder)
        else:
            from ..exporting.executorch_model import ExecutorchLlaso

            files = ExecutorchLlaso(arguments.folder)
    except ModuleNotFoundError as error:
        raise _without_extra(error, kind) from None
    clips = [read_audio(clip) for clip in arguments.clips]
    model, processor = _loaded(name)
    model = model.float()
    question = arguments.question or processor.default_transcription_prompt
    prompts = compare_prompts(files, processor, question)
    compared = (compare_clip(files, model, processor, clip, question, arguments.max_new_tokens) for clip in clips)
    equal = _print_comparisons(prompts, arguments.clips, compared, f"equal ids and logits within {CLOSE:g}")
    return 0 if equal else 1


def _check_gguf(arguments: argparse.Namespace, name: str) -> int:
    try:
        from ..exporting.llama_cpp_check import (
            LlamaCppServer,
            compare_clip,
            compare_prompts,
            context_for,
            is_quiet,
            read_clips,
        )
    except ModuleNotFoundError as error:
        raise _without_extra(error, "export") from None
    clips = read_clips(arguments.clips)
    model, processor = _loaded(name)
    question = arguments.question or processor.default_transcription_prompt
    with LlamaCppServer(arguments.folder, context_for(processor, question, arguments.max_new_tokens)) as server:
        prompts = compare_prompts(server, processor, question)
        compared = (compare_clip(server, model, processor, clip, question, arguments.max_new_tokens) for clip in clips)
        equal = _print_comparisons(prompts, arguments.clips, compared, "equal prompt lengths and answers")
    if quiet := [file for file, clip in zip(arguments.clips, clips, strict=True) if is_quiet(processor, clip)]:
        print(
            f"{', '.join(quiet)}: so quiet that llama.cpp hears silence differently; compare a louder copy, and send "
            "llama.cpp loud recordings"
        )
    return 0 if equal else 1


def _print_comparisons(
    prompts: dict[str, bool], files: Sequence[str], compared: Iterable[ClipComparison | PartsComparison], wanted: str
) -> bool:
    """Print a line for each form of a prompt, for each clip, and for all; return whether all are equal."""
    for form, same in prompts.items():
        print(f"prompt of {form}: {'equal' if same else 'DIFFERENT'} token ids")
    equal = 0
    for file, one in zip(files, compared, strict=True):
        print(f"{file}: {one.described()}", flush=True)
        equal += one.equal
    print(f"{equal} of {len(files)} clips with {wanted}")
    return equal == len(files) and all(prompts.values())
