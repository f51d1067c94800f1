"""Runs the programs of the pages of symptoms as a reader would, and gives what was found."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from bnmonitor import Incident

_SEVERAL = "init_process_group"
"""What a program has that torchrun begins in several processes."""


def incidents_of(code: str) -> tuple[Incident, ...]:
    """Run a program, and return the incidents of its monitor."""
    if _SEVERAL in code:
        return _in_two_processes(code)
    names: dict[str, Any] = {"__name__": "program"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the default action shows alerts on the console, which is redirected
            exec(compile(code, "program", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    found: tuple[Incident, ...] = names["monitor"].incidents
    return found


def _in_two_processes(code: str) -> tuple[Incident, ...]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        program, result = Path(folder, "program.py"), Path(folder, "incidents.json")
        program.write_text(code, encoding="utf-8")
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        done = subprocess.run(
            [sys.executable, "-m", "tests.symptoms.running", str(program), str(result)],
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return tuple(map(Incident.from_dict, json.loads(result.read_text(encoding="utf-8"))))


def main(program: str, result: str) -> int:
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
    exec(code, names)
    found = [incident.to_dict() for incident in names["monitor"].incidents]
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
