"""`llaso demo`: a web page for a model, on this machine or as a Space of the Hub."""

from __future__ import annotations

import argparse
import socket
import tempfile
from pathlib import Path

from .option_types import at_least_1, device, port, some_text
from .serve_commands import model_name

LOOPBACK = "127.0.0.1"


def add_parser(commands) -> None:
    """Add `llaso demo`."""
    demo = commands.add_parser(
        "demo",
        help="a page in the browser: record or upload, ask, and see what the encoder sees",
        description="Serves a page on this machine alone until Ctrl-C. With --export, writes a folder that is a Space "
        "of the Hub instead: `hf upload OWNER/NAME DIR . --repo-type space` publishes it.",
    )
    demo.add_argument("model", metavar="MODEL", help="a checkpoint's folder, or a Hub id")
    demo.add_argument("--port", type=port, default=7860, metavar="N")
    demo.add_argument(
        "--host", type=some_text, default=LOOPBACK, metavar="ADDRESS", help="0.0.0.0 lets the whole network in"
    )
    demo.add_argument("--max-new-tokens", type=at_least_1, default=256, metavar="N")
    demo.add_argument("--device", type=device, help="cpu, cuda, …; by default the GPU if there is one")
    demo.add_argument(
        "--export", metavar="DIR", type=some_text, help="write a Space into a new folder; a local model goes with it"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    demo.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> None:
    """Serve the page, or export it."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("the demo needs gradio: pip install 'llaso[demo]'") from error
    if arguments.overwrite and arguments.export is None:
        raise ValueError("--overwrite is for --export")
    if arguments.export is not None:
        _export(arguments)
    else:
        _serve(arguments)


def _export(arguments: argparse.Namespace) -> None:
    from ..demo.menu_builder import build_menu
    from ..demo.space import export

    def write_menu(folder: Path) -> None:
        build_menu(arguments.model, folder)

    out = export(arguments.model, Path(arguments.export), write_menu, arguments.overwrite)
    print(f"a Space is in {out}: `python {out / 'app.py'}` runs it here;")
    print(
        f"`hf repos create OWNER/NAME --repo-type space --space-sdk gradio` and `hf upload OWNER/NAME {out} . "
        "--repo-type space` publish it"
    )


def _serve(arguments: argparse.Namespace) -> None:
    from modeling_llaso.loading import load

    from ..demo.menu_builder import build_menu
    from ..demo.page import build_page, launch
    from ..demo.question import DemoModel

    _check_port(arguments.host, arguments.port)
    model, processor = load(arguments.model, arguments.device)
    with tempfile.TemporaryDirectory(prefix="llaso-demo-") as folder:
        menu = build_menu(arguments.model, Path(folder))
        page = build_page(DemoModel(model, processor, arguments.max_new_tokens), menu, model_name(arguments.model))
        launch(page, server_name=arguments.host, server_port=arguments.port)


def _check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be served, or a port that is taken, before a model is loaded."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--host {host} --port {port}: {error}; choose another address or port") from None
