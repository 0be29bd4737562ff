"""Turns the Hub's errors into plain messages with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Raise the Hub's errors as one line with a remedy.

    Args:
        repo_id: the repository that the message names.

    Raises:
        PermissionError: the Hub does not accept the token, or the token may not do this.
        ConnectionError: the Hub is switched off, cannot be reached, or the connection broke.
        ValueError: the Hub refuses for another reason.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except (HTTPError, RuntimeError, OfflineModeIsEnabled) as error:  # HTTPError: of the Hub or of the connection
        # An upload that fails in one of several threads comes as a RuntimeError around the reason.
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(reason, OfflineModeIsEnabled):
            raise ConnectionError(f"{repo_id}: the Hub is switched off here; unset HF_HUB_OFFLINE") from error
        if isinstance(reason, HfHubHTTPError):
            raise _refusal(repo_id, reason) from error
        if isinstance(reason, (HTTPError, OSError)):
            raise ConnectionError(
                f"{repo_id}: the connection to the Hub broke ({type(reason).__name__}: {_first_line(reason)}). What "
                "has arrived is kept there: run the same command again"
            ) from error
        raise


def _first_line(said: object) -> str:
    return str(said).strip().split("\n")[0]


def _refusal(repo_id: str, error: Any) -> Exception:
    """Return the exception that says what the Hub's answer means and what to do."""
    status, said = error.response.status_code, _first_line(error.server_message or error)
    if status == 401:
        return PermissionError(
            f"{repo_id}: the Hub does not accept this token, or there is none ({said}). Log in with `hf auth login`, "
            "or set HF_TOKEN to a token that may write"
        )
    if status == 403:
        return PermissionError(f"{repo_id}: this token may not do this ({said})")
    if status == 412:
        return ValueError(
            f"{repo_id}: it was changed on the Hub meanwhile; look at it, then run the same command again"
        )
    if status == 404:
        return ValueError(f"{repo_id}: not there, or not for this token to see ({said})")
    if status == 429 or status >= 500:
        return ConnectionError(f"{repo_id}: the Hub answered {status} ({said}); run the same command again later")
    return ValueError(f"{repo_id}: the Hub answered {status} ({said})")
