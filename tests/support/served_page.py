"""The demo's page, served on loopback for a test."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from llaso.demo.menu import Menu
from llaso.demo.page import build_page, launch
from llaso.demo.question import DemoModel


@contextlib.contextmanager
def served(demo_model: DemoModel, menu: Menu, name: str = "model") -> Iterator[str]:
    """Serve a page; yield its address."""
    page = build_page(demo_model, menu, name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch(page, server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}/"
    page.close()
