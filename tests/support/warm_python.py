"""A Python that has imported the heavy libraries once and runs each requested program in a fork, without the wait.

Tests of the documentation run dozens of commands; each would spend seconds importing torch and transformers. Programs
see their own arguments, folder, environment, standard streams and exit code, as from a shell. `with warm(folder)`
starts it and gives the environment whose PATH has `llaso` and `python` leading here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

CLIENT = """#!{python} -S
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = {{"argv": [{name!r}, *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}}
socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
server.shutdown(socket.SHUT_WR)
replies = server.makefile()
worker = int(replies.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda caught, frame: os.kill(worker, caught))
sys.exit(int(replies.readline() or 1))
"""


@contextlib.contextmanager
def warm(folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run a server in the context; yield it.

    Args:
        folder: gets `bin/llaso`, `bin/python` and `bin/activate`.
        environment: of the server; what libraries read as they are imported must be there already.

    Yields:
        The environment for programs that are to use it.
    """
    address = str(folder / "warm.socket")
    (folder / "bin").mkdir(parents=True)
    for name in ("llaso", "python"):
        client = folder / "bin" / name
        client.write_text(CLIENT.format(python=sys.executable, address=address, name=name))
        client.chmod(client.stat().st_mode | stat.S_IXUSR)
    (folder / "bin" / "activate").write_text(f'PATH="{folder / "bin"}:$PATH"\n')
    process = subprocess.Popen(
        [sys.executable, __file__, address],
        env=dict(environment), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", "it could not import something"
        yield {**environment, "PATH": f"{folder / 'bin'}:{environment['PATH']}"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # and its forks that still run
        process.wait()


def serve(address: str) -> None:
    """Import, listen, and fork a worker for every program."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from transformers import AutoModelForMultimodalLM, AutoProcessor, Trainer  # noqa: F401

    import llaso.training.run.train  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no code waits for the workers; the kernel removes them
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        data, streams, _, _ = socket.recv_fds(client, 4096, 3)
        while piece := client.recv(65536):
            data += piece
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(work(json.loads(data), client, streams))
        client.close()
        for stream in streams:
            os.close(stream)


def work(asked: dict, client: socket.socket, streams: list[int]) -> int:
    """Run the program that was asked for, and send its exit code."""
    import atexit
    import runpy

    client.sendall(f"{os.getpid()}\n".encode())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False, buffering=1)
    sys.stderr = open(2, "w", closefd=False, buffering=1)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    threading.Thread(target=_end_with, args=(client,), daemon=True).start()
    name, *rest = asked["argv"]
    code: object = 0
    try:
        if name == "llaso":
            from llaso.cli import main

            sys.argv = [name, *rest]
            code = main()
        elif rest[0] == "-m":
            sys.argv = rest[1:]
            runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = rest
            sys.path.insert(0, str(Path(rest[0]).parent))
            runpy.run_path(rest[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    number = code if isinstance(code, int) else int(code is not None)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # the other end may be closed
        client.sendall(f"{number}\n".encode())
    return number


def _end_with(client: socket.socket) -> None:
    """End this process when the caller is gone: nothing more can be read, and writing fails."""
    poller = select.poll()
    poller.register(client, 0)  # only what is always reported: the other side hung up
    poller.poll()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve(sys.argv[1])
