"""Fetches audio from URLs, without letting clients reach hosts that the server's operator did not name.

A URL's host must be named; its address must be public or inside a named network; the connection goes to the address
that was checked; redirects are not followed; size and time are limited.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AllowedHosts:
    """Hosts that audio may be fetched from.

    Args:
        names: host names, and addresses or networks (10.0.0.0/8). A network allows URLs with an address inside it, and
            named hosts whose address is private.
    """

    def __init__(self, names: Sequence[str] = ()):
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        for name in names:
            try:
                self._networks.append(ipaddress.ip_network(name.strip("[]"), strict=False))
            except ValueError:
                self._hosts.add(name.lower().rstrip("."))

    def resolve(self, host: str, port: int) -> str:
        """Return the address to connect to.

        Raises:
            PermissionError: the host is not named, or has an address that is neither public nor in a named network.
            OSError: the host has no address.
        """
        host = host.lower().rstrip(".")
        try:
            addresses = [host] if self._allows_address(host) else []
        except ValueError:
            addresses = []
            if host in self._hosts:
                addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
                if not all(_is_public(one) or self._allows_address(one) for one in addresses):
                    raise PermissionError(f"{host} has a private address") from None
        if not addresses:
            raise PermissionError(f"this server does not fetch audio from {host}")
        return addresses[0]

    def _allows_address(self, address: str) -> bool:
        """Return whether an address lies in a named network; raise `ValueError` for a host name."""
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._networks)


def _is_public(address: str) -> bool:
    """Return whether an address is that of a single host on the internet."""
    parsed = ipaddress.ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return parsed.is_global and not parsed.is_multicast


def fetch(url: str, allowed: AllowedHosts, max_bytes: int, seconds: float) -> bytes:
    """Download a file.

    Args:
        url: an http or https URL without credentials.
        allowed: hosts that may be contacted.
        max_bytes: larger files are an error.
        seconds: time limit for the whole download.

    Raises:
        PermissionError: the host is not allowed.
        ValueError: the URL is malformed, or the file is too large.
        OSError: the download failed, or took too long.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("write the URL as https://HOST/PATH")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = allowed.resolve(parts.hostname, port)
    connection = http.client.HTTPConnection(parts.hostname, port)
    late = threading.Event()
    started = time.monotonic()
    # Connected to the checked address: resolving the name again could give another one.
    connected = socket.create_connection((address, port), timeout=seconds)
    if parts.scheme == "https":
        connected = ssl.create_default_context().wrap_socket(
            connected, server_hostname=parts.hostname, do_handshake_on_connect=False
        )

    def give_up() -> None:
        late.set()
        with contextlib.suppress(OSError):  # the other side has closed it
            connected.shutdown(socket.SHUT_RDWR)

    with connected:
        timer = threading.Timer(max(0.0, seconds - (time.monotonic() - started)), give_up)
        timer.start()
        try:
            if isinstance(connected, ssl.SSLSocket):
                connected.do_handshake()
            connection.sock = connected
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(f"{parts.hostname} answered {response.status}; redirects are not followed")
            content = response.read(max_bytes + 1)
        except http.client.HTTPException as error:
            raise OSError(f"{parts.hostname} sent no complete answer ({type(error).__name__})") from None
        except OSError:
            if late.is_set():
                raise OSError(f"{parts.hostname} did not send the file within {seconds:g} s") from None
            raise
        finally:
            timer.cancel()
            connection.close()
    if late.is_set():
        raise OSError(f"{parts.hostname} did not send the file within {seconds:g} s")
    if len(content) > max_bytes:
        raise ValueError(f"the file is larger than {max_bytes / 2**20:g} MiB")
    return content
