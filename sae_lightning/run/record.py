"""run.json: what a run was, on what, and how it ended."""

import contextlib
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from torch import nn

import sae_lightning
from sae_lightning.errors import GivenUp
from sae_lightning.files import write_json
from sae_lightning.run.folder import rank
from sae_lightning.run.lock import hold, release
from sae_lightning.signals import leaving_at_once
from sae_lightning.sweeps.devices import cores

log = logging.getLogger(__name__)


@runtime_checkable
class Following(Protocol):
    """A logger that wants to know what a run is, how it ends, and what it was worth."""

    def begin(self, config: dict[str, Any], module: nn.Module) -> None: ...

    def summarise(self, values: Mapping[str, float]) -> None: ...

    def end(self, status: str) -> None: ...


PACKAGES = ("sae_lightning", "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "transformers", "numpy")


class Progress(NamedTuple):
    """How far a run came."""

    step: int
    max_steps: int
    rows_seen: int
    metrics: Mapping[str, float] = {}
    """What the last validation said."""

    @property
    def is_done(self) -> bool:
        return self.step >= self.max_steps


@contextlib.contextmanager
def recording(
    folder: str | Path, *, seed: int, module: nn.Module, progress: Callable[[], Progress], data: Mapping[str, Any] | None = None,
    loggers: Sequence[Logger] = (), config: Mapping[str, Any] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Writes run.json when the block begins (status running) and when it ends: finished, failed, interrupted, or given up by a search.

    data: what is said of the source of rows. loggers: get `config` at the beginning, and are told of the end.
    progress: asked at the end. A run that ends well before its last step (`trainer.max_time`) is interrupted. A killed process leaves
    `running`. Inside, a signal raises Interrupted, and this process holds the folder's lock. Ranks above 0 write nothing. Errors:
    InputError where another process is at work in the folder.
    """
    if rank() == 0:
        hold(Path(folder))
    start_record(folder, seed=seed, module=module, data=data)
    begin(loggers, dict(config or {}), module)
    status = "failed"
    try:
        with leaving_at_once():
            yield
        status = "finished" if progress().is_done else "interrupted"
    except GivenUp:
        status = "given up"
        raise
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    finally:
        end_record(folder, status=status, progress=progress())
        for logger in loggers:
            if isinstance(logger, Following):
                logger.end(status)
        release(Path(folder))


def begin(loggers: Sequence[Logger], config: dict[str, Any], module: nn.Module) -> None:
    """What a run is, for each logger in its own way."""
    for logger in loggers:
        if isinstance(logger, Following):
            logger.begin(config, module)
        else:
            logger.log_hyperparams(config)


def start_record(folder: str | Path, *, seed: int, module: nn.Module, data: Mapping[str, Any] | None = None) -> None:
    """Writes run.json; a folder that has one (a resumed run) keeps the earlier ones' beginnings and ends in `before`."""
    if rank() != 0:
        return
    path = Path(folder) / "run.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    record: dict[str, Any] = {
        "status": "running",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "duration_s": None,
        "step": None,
        "rows_seen": None,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "words": words(),
        "process": {"host": platform.node(), "pid": os.getpid()},
        "seed": seed,
        "data": data,
        "git": git_state(Path(sae_lightning.__file__).parent),
        "versions": versions(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "parameters": {
            "total": sum(p.numel() for p in module.parameters()),
            "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
        },
        "module": str(module).splitlines(),
        "shapes": {name: list(parameter.shape) for name, parameter in module.named_parameters()},
    }
    if earlier is not None:
        part = {key: earlier.get(key) for key in ("status", "started", "duration_s", "step", "rows_seen", "command")}
        record["before"] = [*earlier.get("before", []), part]
    write_json(path, record)


def end_record(folder: str | Path, *, status: str, progress: Progress) -> None:
    """Completes run.json. status: finished, failed, interrupted or given up."""
    if rank() != 0:
        return
    path = Path(folder) / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    passed = datetime.now().astimezone() - datetime.fromisoformat(record["started"])
    ended = {
        "status": status,
        "duration_s": round(passed.total_seconds(), 1),
        "step": progress.step,
        "rows_seen": progress.rows_seen,
        "metrics": {name: value if math.isfinite(value) else None for name, value in progress.metrics.items()},
    }
    write_json(path, record | ended)


def words() -> list[str]:
    """What was chosen and set for this run, a resumed one's recorded words among it: what a later resume replays."""
    if not HydraConfig.initialized():
        return []
    overrides = HydraConfig.get().overrides
    searched = [word for word in overrides.hydra if word.startswith("hydra.searchpath=")]
    return [*searched, *(word for word in overrides.task if not word.startswith("resume="))]


def warn_of_versions(folder: str | Path) -> None:
    """Says which of the versions in a run's record are not those of now: the same run on them may differ in the last digits."""
    path = Path(folder) / "run.json"
    if rank() != 0 or not path.is_file():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    recorded, now = dict(record.get("versions") or {}), dict(versions())
    for state, where in ((record.get("git"), recorded), (git_state(Path(sae_lightning.__file__).parent), now)):
        where["commit"] = state["commit"][:10] if state else None
    for name, version_then in recorded.items():
        if now.get(name) != version_then:
            log.warning("this run was started with %s %s and goes on with %s", name, version_then, now.get(name))


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that the package runs from; None where it is installed, or git is missing."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.resolve().parent:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that decide what a run computes; None for one that is absent."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    """CPU model and cores, memory in bytes, names of the GPUs that this process sees."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
