"""`llaso serve`: OpenAI's HTTP interface for a model."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from ..serving.limits import Limits
from .option_types import add_ctc_weight, add_speech_finder, device, port_or_0, some_text


def add_parser(commands) -> None:
    """Add `serve` to the `llaso` parser."""
    serve = commands.add_parser(
        "serve",
        help="answer OpenAI clients over HTTP",
        description="Serve a model at /v1/chat/completions, /v1/audio/transcriptions and, live, /v1/realtime, with "
        "/health and /metrics.",
    )
    serve.add_argument("model", metavar="ID_OR_DIR")
    serve.add_argument(
        "--host", type=some_text, default="127.0.0.1", help="the address to listen at; by default this machine's own"
    )
    serve.add_argument("--port", type=port_or_0, default=8000, help="0 takes a free one")
    serve.add_argument("--device", type=device, help="cpu, cuda, …; by default the GPU if there is one")
    key = serve.add_mutually_exclusive_group()
    key.add_argument("--api-key-env", metavar="NAME", help="environment variable with the key that clients must send")
    key.add_argument("--api-key-file", metavar="FILE", help="file with that key")
    serve.add_argument(
        "--audio-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch audio URLs of this host; private addresses only if their network is named, too; repeatable",
    )
    add_speech_finder(serve)
    add_ctc_weight(serve)
    limits = serve.add_argument_group("limits")
    for limit in fields(Limits):
        limits.add_argument(
            "--" + limit.name.replace("_", "-"),
            type=type(limit.default),
            default=limit.default,
            metavar="N",
            help=f"{limit.metadata['help']} (default: {limit.default:g})",
        )
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve a model until SIGTERM or Ctrl-C."""
    limits = Limits(**{limit.name: getattr(arguments, limit.name) for limit in fields(Limits)})
    api_key = _api_key(arguments)
    try:
        from ..serving.app import build_app, unsupported_generation_fields
        from ..serving.server import address, bound_socket, is_loopback, run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; serving needs the extra: pip install 'llaso[serve]'"
        ) from None
    from modeling_llaso.loading import load

    from ..transcription.speech_finders import speech_finder

    finder = speech_finder(arguments.speech_finder)
    with bound_socket(arguments.host, arguments.port) as bound:
        if api_key is None and not is_loopback(arguments.host):
            _warn(
                f"{arguments.host} is open to other machines, and there is no API key: anyone who reaches it can use "
                "the model. Set one with --api-key-env or --api-key-file"
            )
        model, processor = load(arguments.model, arguments.device)
        if ignored := unsupported_generation_fields(model.generation_config):
            _warn(f"the generation config's {', '.join(ignored)} are not applied here")
        name = model_name(arguments.model)
        app = build_app(model, processor, name, limits, api_key, arguments.audio_host, finder, arguments.ctc_weight)
        print(f"serving {name} at {address(bound)}/v1", flush=True)
        run(app, bound, limits)


def model_name(model: str) -> str:
    """Return the name of a model in requests and on the demo's page: its Hub id, or the name of its folder."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _api_key(arguments: argparse.Namespace) -> str | None:
    if arguments.api_key_env is not None:
        source, key = f"the variable {arguments.api_key_env}", os.environ.get(arguments.api_key_env, "")
    elif arguments.api_key_file is not None:
        source, key = arguments.api_key_file, Path(arguments.api_key_file).read_text(encoding="utf-8")
    else:
        return None
    if not key.strip():
        raise ValueError(f"{source} holds no API key")
    if not key.isascii():
        raise ValueError(f"{source}: the API key has characters that an HTTP header cannot carry")
    return key.strip()


def _warn(message: str) -> None:
    print(f"llaso: warning: {message}", file=sys.stderr, flush=True)
