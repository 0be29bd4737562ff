"""Worker processes end with a parent that was killed, whichever way they were started."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from support.paths import ROOT

POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from llaso_common.end_with_parent import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1]), end_with_parent)
    workers = {pool.submit(os.getpid).result() for _ in range(2)}
    waiting = [pool.submit(time.sleep, 0.2) for _ in range(4)]
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("way", ["spawn", "forkserver", "fork"])
def test_workers_of_a_killed_process_end(way, tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "pool.py"), way], stdout=subprocess.PIPE, text=True, env=environment
    )
    workers = [psutil.Process(int(word)) for word in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(workers, timeout=30)
    for worker in left:
        worker.kill()
    assert not left
