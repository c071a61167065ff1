"""Runs side by side, each a plain `python train.py …` (or `-m` of a module) in a process of its own, with devices of its own."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import IO, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.run.command import read
from sae_lightning.signals import PARENT, leaving_tidily
from sae_lightning.sweeps.devices import cores, visible
from sae_lightning.sweeps.jobs import composed, quoted

OF_A_LAUNCHER = ("SLURM_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_")
OF_A_RANK = {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PL_GLOBAL_SEED"}
SECONDS_BETWEEN_LOOKS = 0.05
Next = Callable[[], Sequence[str] | None]


class Died(RuntimeError):
    """A child ended otherwise than well. `number`: the signal that ended it, or None."""

    def __init__(self, code: int, console: Path):
        self.number = -code if code < 0 else code - 128 if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) else None
        how = f"by {signal.Signals(self.number).name}" if self.number else f"with exit code {code}"
        super().__init__(f"the process ended {how}; its last words are in {console}")


class Child(NamedTuple):
    """A process at work. `slot`: which share of the devices it has."""

    index: int
    slot: int
    process: Popen
    console: Path
    log: IO[bytes]


class Processes:
    """`n_jobs` runs at a time (None: one for each share of the GPUs; one where there are none).

    `gpus_per_job`: so many of the GPUs that this process may see, no two runs the same (None: one, where there are any). CPU cores are
    shared evenly. What a run prints is in <run>/console.log. A run whose parent dies stops with a checkpoint. Errors: InputError for
    more than there is.
    """

    def __init__(self, config: DictConfig, loader: ConfigLoader, n_jobs: int | None, gpus_per_job: int | None):
        self.config, self.loader = config, loader
        found = visible()
        each = min(1, len(found)) if gpus_per_job is None else gpus_per_job
        if each > len(found):
            raise InputError(
                f"hydra.launcher.gpus_per_job={each}: there are {len(found)} GPUs; python -m sae_lightning.sweeps.devices lists them"
            )
        self.n_jobs = n_jobs or (len(found) // each if each else 1)
        if each and self.n_jobs * each > len(found):
            raise InputError(
                f"hydra.launcher.n_jobs={self.n_jobs} times gpus_per_job={each} is more than the {len(found)} GPUs that there are: lower one of them"
            )
        self._devices = [found[slot * each : (slot + 1) * each] for slot in range(self.n_jobs)]

    def launch(self, jobs: Sequence[Sequence[str]]) -> list[JobReturn]:
        """All of them; how each ended, in their order."""
        left = iter(jobs)
        ended = dict(self.launch_each(lambda: next(left, None)))
        return [ended[index] for index in range(len(jobs))]

    def launch_each(self, following: Next) -> Iterator[tuple[int, JobReturn]]:
        """Asks for the words of another job whenever there is room, until there is none; yields which one ended, and how.

        When a signal ends this process, its jobs stop first, with a checkpoint each.
        """
        with leaving_tidily(), contextlib.closing(self._each(following)) as ended:
            yield from ended

    def _each(self, following: Next) -> Generator[tuple[int, JobReturn], None, None]:
        free, index, at_work, is_over = list(range(self.n_jobs)), 0, [], False
        try:
            while True:
                while free and not is_over:
                    words = following()
                    if words is None:
                        is_over = True
                        break
                    at_work.append(self._begin(index, free.pop(0), words))
                    index += 1
                if not at_work:
                    return
                ended = [child for child in at_work if child.process.poll() is not None]
                for child in ended:
                    at_work.remove(child)
                    free.append(child.slot)
                    child.log.close()
                    yield child.index, _returned(child)
                    is_over = False  # what ended may be something to go on with
                if not ended:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            for child in at_work:
                child.process.terminate()
            for child in at_work:
                with contextlib.suppress(TimeoutExpired):
                    child.process.wait(60)

    def _begin(self, index: int, slot: int, words: Sequence[str]) -> Child:
        cfg = composed(self.config, self.loader, index, words)
        folder = (Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        console = folder / "console.log"
        log = open(console, "ab")  # noqa: SIM115 (until the child ends)
        environment = self._environment(slot) | {key: str(value) for key, value in cfg.hydra.job.env_set.items()}
        process = Popen(command(self.config, words, folder), env=environment, stdin=DEVNULL, stdout=log, stderr=log, start_new_session=True)
        return Child(index, slot, process, console, log)

    def _environment(self, slot: int) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in OF_A_RANK and not name.startswith(OF_A_LAUNCHER)}
        kept |= {PARENT: str(os.getpid()), "CUDA_VISIBLE_DEVICES": ",".join(self._devices[slot])}
        kept.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.n_jobs)))
        return kept


def command(config: DictConfig, words: Sequence[str], folder: Path, argv: Sequence[str] | None = None) -> list[str]:
    """What starts one job of a sweep by itself. `argv`: the command line of the sweep, for its flags."""
    typed = read(sys.argv[1:] if argv is None else argv)
    flags = [word for word in typed.argv if word not in typed.words and word not in ("-m", "--multirun")]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    script = [os.path.abspath(sys.argv[0])] if module is None or module.origin != sys.argv[0] else ["-m", module.name]
    begin = [sys.executable, *script, *flags]
    if any(word.startswith("resume=") for word in words):
        return [*begin, f"resume={quoted(folder)}"]
    own = [word for word in OmegaConf.to_container(config.hydra.overrides.hydra) or [] if not _is_of_a_sweep(str(word))]  # type: ignore[union-attr]
    mine = [word for word in words if not _is_of_a_sweep(word)]
    return [*begin, *map(str, own), *mine, f"hydra.run.dir={quoted(folder)}", "hydra.mode=RUN"]


def _is_of_a_sweep(word: str) -> bool:
    names = ("hydra/sweeper", "hydra/launcher", "hydra.sweep", "hydra.launcher", "hydra.job.env_set", "hydra.mode")
    return word.lstrip("+~").startswith(names)


def _returned(child: Child) -> JobReturn:
    code = child.process.returncode
    made = JobReturn(working_dir=str(child.console.parent))
    made.return_value = None if code == 0 else Died(code, child.console)
    made.status = JobStatus.COMPLETED if code == 0 else JobStatus.FAILED
    return made
