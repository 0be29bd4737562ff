"""The process: a socket, uvicorn on it, and an end without loss when told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the address, so that it is known to be free before a model is loaded.

    Raises:
        OSError: it is not free, or not this machine's.
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
    """`http://HOST:PORT` of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def configured(app, limits: Limits) -> uvicorn.Config:
    """uvicorn's settings for an application of ours."""

    class Prompt(H11Protocol):
        """A connection that must send its first request's headers in time."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(limits.upload_seconds, self._close_unless_begun)

        def _close_unless_begun(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return uvicorn.Config(
        app,
        http=Prompt,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
    )


def run(app, bound: socket.socket, limits: Limits) -> None:
    """Serve until SIGTERM or SIGINT; then take no more requests, end those under way, and return."""
    server = uvicorn.Server(configured(app, limits))
    # Once it has ended, uvicorn raises the signal again for whoever handled it before; here, nothing is left to do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[bound])
