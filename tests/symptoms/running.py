"""Runs the programs of the pages of symptoms as a reader would, and gives what was found."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bnmonitor import Incident, Monitor
from bnmonitor.sinks.tensorboard import TensorBoard

_SEVERAL = "init_process_group"
"""What a program has that torchrun begins in several processes."""


def incidents_of(code: str, folder: Path | None = None) -> tuple[Incident, ...]:
    """Run a program, and return the incidents of its monitor.

    Args:
        code: The program.
        folder: Where its monitors record every step, each in a run of its own; None: nowhere.
    """
    if _SEVERAL in code:
        return _in_two_processes(code, folder)
    names: dict[str, Any] = {"__name__": "program"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), recorded_in(folder):
            warnings.simplefilter("ignore")  # the default action shows alerts on the console, which is redirected
            exec(compile(code, "program", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    found: tuple[Incident, ...] = names["monitor"].incidents
    return found


@contextlib.contextmanager
def recorded_in(folder: Path | None) -> Iterator[None]:
    """Have the monitors that are made meanwhile record every step, each in a run of its own in a folder."""
    if folder is None:
        yield
        return
    number = itertools.count()

    def recorded(*args: Any, **kwargs: Any) -> Monitor:
        sink = TensorBoard(folder / str(next(number)))
        return Monitor(*args, **{**kwargs, "sinks": [sink], "log_every_n_steps": 1})

    with patch("bnmonitor.Monitor", recorded):
        yield


def _in_two_processes(code: str, folder: Path | None) -> tuple[Incident, ...]:
    with tempfile.TemporaryDirectory() as files, socket.socket() as free:
        program, result = Path(files, "program.py"), Path(files, "incidents.json")
        program.write_text(code, encoding="utf-8")
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        paths = (program, result, folder) if folder else (program, result)
        done = subprocess.run(
            [sys.executable, "-m", "tests.symptoms.running", *map(str, paths)],
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return tuple(map(Incident.from_dict, json.loads(result.read_text(encoding="utf-8"))))


def main(program: str, result: str, folder: str = "") -> int:
    """Run a program in two processes, which share what importing has cost."""
    from torch.nn.parallel import DistributedDataParallel  # noqa: F401

    import bnmonitor.monitor  # noqa: F401

    code = compile(Path(program).read_text(encoding="utf-8"), program, "exec")
    other = os.fork()
    os.environ.update(RANK="1" if other == 0 else "0", LOCAL_RANK="1" if other == 0 else "0", WORLD_SIZE="2")
    names: dict[str, Any] = {"__name__": "__main__"}
    if other == 0:
        try:
            exec(code, names)
        except BaseException:
            os._exit(1)
        os._exit(0)
    with recorded_in(Path(folder) if folder else None):
        exec(code, names)
    found = [incident.to_dict() for incident in names["monitor"].incidents]
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
