"""A plain grid: every combination of the words that have several values. Typed again, it goes on where it stopped."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from sae_lightning.run.composer import parsed, unsaid
from sae_lightning.sweeps.jobs import ENDED, Job, Jobs, launched, plain, record, say

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def sweep(config: DictConfig, loader: ConfigLoader, launcher: Launcher, words: Sequence[str]) -> None:
    """Launches every job that has not ended. Errors: HydraException where some failed; InputError for the folder of another sweep."""
    params = unsaid(config.sweep.params, map(parsed, words))
    found = list(combinations([*words, *params], loader, config.sweep.one_at_a_time))[: config.sweep.limit]
    jobs = Jobs(config, loader)
    if config.sweep.dry_run:
        for number, one in enumerate(found):
            print(f"{jobs.job(number, one).folder.name}  {' '.join(one)}")
        print(f"{len(found)} jobs in {jobs.folder}; nothing was run")
        return
    jobs.begin({"words": [word for word in [*words, *params] if parsed(word).is_sweep_override()], "config": plain(config)})
    left = [job for number, one in enumerate(found) if _is_left(job := jobs.job(number, one))]
    if len(left) < len(found):
        say("%d of %d jobs are left", len(left), len(found))
    one_by_one = type(launcher).__name__ == "BasicLauncher"
    failed: list[Job] = []
    for batch in [[job] for job in left] if one_by_one else [left] if left else []:
        returns = launched(launcher, [jobs.launched(job) for job in batch], batch[0].number)
        for job, ended in zip(batch, returns, strict=True):
            if ended.status != JobStatus.COMPLETED:
                failed.append(job)
                say("%s failed: %s", job.folder.name, why(ended._return_value))
    if failed:
        names = ", ".join(job.folder.name for job in failed)
        raise HydraException(f"{len(failed)} of {len(found)} jobs failed: {names}; mend what is wrong and type the same command again")


def combinations(words: Sequence[str], loader: ConfigLoader, one_at_a_time: bool) -> Iterator[list[str]]:
    """The words of each job: all combinations, the last word's values first; or the first values, and each other value alone."""
    values = [_values(parsed(word), loader) for word in words]
    if not one_at_a_time:
        yield from map(list, itertools.product(*values))
        return
    baseline = [one[0] for one in values]
    yield baseline
    for i, one in enumerate(values):
        yield from ([*baseline[:i], value, *baseline[i + 1 :]] for value in one[1:])


def _values(override: "Override", loader: ConfigLoader) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    override.config_loader = loader
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _is_left(job: Job) -> bool:
    status = record(job).get("status")
    if status == "at work":
        say("%s is at work in another process", job.folder.name)
    return status not in (*ENDED, "at work")


def why(error: object) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if isinstance(error, Exception) and str(error) else repr(error)
