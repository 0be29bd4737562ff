"""transformers' own common tests, fetched through pip from the source distribution of the installed version.

The distribution leaves out a few helper modules that its tests import; stand-ins for those are written beside them,
and say so. What is fetched is kept in the user's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "transformers_common_tests"
STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    # A value for every field that all configurations share, so that each is read back after saving.
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'output_hidden_states': True, 'chunk_size_feed_forward': 3, "
        "'id2label': {0: 'a', 1: 'b', 2: 'c'}, 'label2id': {'a': 0, 'b': 1, 'c': 2}, 'problem_type': 'regression'}\n"
    ),
    "distributed_testing_utils.py": "",
}
RECORDINGS = (
    "from pathlib import Path\n\n\n"
    "def url_to_local_path(url, return_url_if_not_found=True):\n"
    "    name = url.rsplit('/', 1)[-1]\n"
    "    local = Path(__file__).parent / (Path(name).stem + '.wav')\n"
    "    return str(local) if name.endswith(('.wav', '.mp3')) else url\n"
)
"""The processor tests read two recordings from the Hub; a tone and a noise stand in for them."""


class Unavailable(Exception):
    """The source distribution cannot be fetched here."""


def install() -> Path:
    """Make `transformers_common_tests` importable.

    Returns:
        The folder it lies in.

    Raises:
        Unavailable: pip cannot fetch the distribution; the message says why.
    """
    installed = version("transformers")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llaso" / f"transformers-{installed}"
    if not (cache / PACKAGE / "test_modeling_common.py").is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            _fetch(installed, Path(scratch))
            try:
                (Path(scratch) / "made").rename(cache)  # whole or not at all, even if another process fetches it too
            except OSError:
                assert (cache / PACKAGE / "test_modeling_common.py").is_file()
    if str(cache) not in sys.path:
        sys.path.insert(0, str(cache))
    return cache


def _fetch(installed: str, scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "--dest", str(scratch), f"transformers=={installed}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise Unavailable("pip took more than five minutes to fetch transformers' source distribution") from None
    archive = scratch / f"transformers-{installed}.tar.gz"
    if done.returncode or not archive.is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"pip cannot fetch transformers' source distribution: {reason}")
    target = scratch / "made" / PACKAGE
    target.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                (target / parts[2]).write_bytes(content.read())
    for name, text in STAND_INS.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(text)
    helpers = scratch / "made" / "utils"
    helpers.mkdir()
    (helpers / "fetch_hub_objects_for_ci.py").write_text(RECORDINGS)
    _write_recordings(helpers)


def _write_recordings(folder: Path) -> None:
    import numpy as np
    import soundfile

    seconds = np.arange(16_000) / 16_000
    soundfile.write(folder / "glass-breaking-151256.wav", 0.3 * np.sin(2 * np.pi * 440 * seconds), 16_000)
    noise = np.random.default_rng(0).normal(0, 0.1, 12_000)
    soundfile.write(folder / "f2641_0_throatclearing.wav", noise, 16_000)
