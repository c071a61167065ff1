"""Processes that are forked where a launcher would start a new interpreter: the same commands, without the seconds of their imports."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from sae_lightning.run import lock


class Forked:
    """What a launcher needs of subprocess.Popen."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], stdin: int, stdout: IO[bytes], stderr: IO[bytes], start_new_session: bool
    ):
        assert command[0] == sys.executable and stdin == subprocess.DEVNULL and start_new_session
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _child(command[1:], env, stdout.fileno())

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


def _child(argv: Sequence[str], env: Mapping[str, str], out: int) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115 (to the end)
        os.environ.clear()
        os.environ.update(env)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        lock._held.clear()
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        os._exit(code)
