"""Says in plain words what an error of the operating system means."""

from __future__ import annotations

import errno
from pathlib import Path


def plain_message(error: Exception) -> str:
    """Return what an error says; one that the operating system gave, in words that name the path and the remedy."""
    if not isinstance(error, OSError) or error.filename is None or not str(error).startswith("[Errno"):
        return str(error)
    path = Path(str(error.filename))
    if isinstance(error, NotADirectoryError | FileExistsError):
        file = next((place for place in (*reversed(path.parents), path) if place.is_file()), None)
        return f"{file or path} {'is a file, and a folder is needed there' if file else 'exists'}; choose another path"
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, and a file is needed there; choose another path"
    if isinstance(error, FileNotFoundError):
        return f"no such file or folder: {path}"
    if isinstance(error, PermissionError):
        return f"no permission for {path}; change its permissions or choose another path"
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {path}; free some or choose another path"
    if error.errno == errno.ENAMETOOLONG:
        return f"the name is too long: {path}; choose a shorter one"
    return str(error)
