"""Parts of a store, harvested by whatever launcher: those that are complete are left out. Typed again, it goes on where it stopped."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from sae_lightning.data.harvest import Harvesting
from sae_lightning.errors import InputError
from sae_lightning.run.folder import existing
from sae_lightning.run.harvest import Wanted, report, wanted
from sae_lightning.sweeps.grid import combinations, why
from sae_lightning.sweeps.jobs import composed, launched, quoted, say


class Job(NamedTuple):
    """`words`: what the command of this job says of the harvest."""

    number: int
    words: list[str]
    wanted: Wanted

    @property
    def name(self) -> str:
        """As it is told."""
        return " ".join(self.words) if self.wanted.part is None else f"part {self.wanted.part}"


def sweep(config: DictConfig, loader: ConfigLoader, launcher: Launcher, words: Sequence[str]) -> None:
    """Launches every harvest that is not complete, and says what there is then.

    Errors: HydraException where some failed; InputError, before anything is launched.
    """
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    known: dict[str, Harvesting] = {}
    jobs = [Job(i, one, wanted(composed(config, loader, i, one), known)) for i, one in enumerate(combinations(words, loader, False))]
    for job in jobs:
        if job.wanted.parts is not None and job.wanted.part is None:
            raise InputError(
                f"which of the parts? add 'data.part=range(0,{job.wanted.parts})', or leave out -m to see what there is of them"
            )
    left = [job for job in jobs if not job.wanted.is_complete()]
    if left and len(left) < len(jobs):
        say("%d of %d are left", len(left), len(jobs))
    kept = existing(folder, "paths.multirun")
    failed: list[Job] = []
    one_by_one = type(launcher).__name__ == "BasicLauncher"
    try:
        for batch in [[job] for job in left] if one_by_one else [left] if left else []:
            at = [f"hydra.sweep.dir={quoted(folder)}"]
            for job, ended in zip(batch, _launched(launcher, [[*job.words, *at] for job in batch], batch), strict=True):
                if ended.status != JobStatus.COMPLETED:
                    failed.append(job)
                    say("%s failed: %s", job.name, why(ended._return_value))
    finally:
        _remove_empty(folder, kept, left)
    if failed:
        names = ", ".join(job.name for job in failed)
        raise HydraException(f"{len(failed)} of {len(jobs)} failed: {names}; mend what is wrong and type the same command again")
    for one in {(str(job.wanted.whole.path), job.wanted.parts): job.wanted for job in jobs}.values():
        if one.parts is not None:
            report(one.whole, one.parts)


def _launched(launcher: Launcher, words: Sequence[Sequence[str]], jobs: Sequence[Job]) -> Sequence[JobReturn]:
    """Errors: HydraException where the launcher itself fails, with what is not complete at that moment."""
    try:
        return launched(launcher, words, jobs[0].number)
    except HydraException as error:
        left = ", ".join(job.name for job in jobs if not job.wanted.is_complete())
        raise HydraException(f"{error}; not complete now: {left or 'nothing'}") from error


def _remove_empty(folder: Path, kept: Path, jobs: Sequence[Job]) -> None:
    """What no launcher has written into: the folders of jobs, that of the sweep, and those above it up to what was there before."""
    above = [path for path in (folder, *folder.parents) if path != kept and path not in kept.parents]
    for path in [*(folder / str(job.number) for job in jobs), *above]:
        with contextlib.suppress(OSError):
            path.rmdir()
