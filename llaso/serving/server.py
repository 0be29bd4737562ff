"""The server process: binds a socket, runs uvicorn on it, and finishes running requests when told to stop."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import signal
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits


def is_loopback(host: str) -> bool:
    """Return whether the address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(host: str, port: int) -> socket.socket:
    """Bind a socket, so that a taken port is reported before a model is loaded.

    Raises:
        OSError: the address is taken, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise OSError(f"cannot serve on {host}, port {port}: {error}") from None
    return bound


def address(bound: socket.socket) -> str:
    """Return the URL, `http://HOST:PORT`, of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def configured(app, limits: Limits) -> uvicorn.Config:
    """Return uvicorn's settings for an application."""

    class DeadlineProtocol(H11Protocol):
        """Closes a connection whose first request's headers do not arrive in time."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(limits.upload_seconds, self._close_if_idle)

        def _close_if_idle(self) -> None:
            has_upgraded = self.transport.get_protocol() is not self
            if self.cycle is None and not has_upgraded and not self.transport.is_closing():
                self.transport.close()

    return uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="websockets-sansio" if importlib.util.find_spec("websockets") else "none",
        ws_max_size=limits.body_bytes,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
    )


def run(app, bound: socket.socket, limits: Limits) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new requests, finish the running ones, and return."""
    server = uvicorn.Server(configured(app, limits))
    # After its shutdown uvicorn raises the signal again for the previous handler; a handler that does nothing lets
    # the process end with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[bound])
