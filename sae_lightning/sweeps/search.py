"""A search: Optuna chooses settings, a launcher trains with them, and each job tells its trial how it ended.

Nothing of it is kept in this process. Killed at any moment and typed again, the same command goes on: trials that ended stay, trials that
nobody trains any more are gone on with from their checkpoints, and the study never has more than `n_trials`.
"""

import logging
import math
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import optuna
from filelock import FileLock
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from sae_lightning.errors import in_a_line
from sae_lightning.files import write_text
from sae_lightning.run.instantiate import instantiate
from sae_lightning.signals import leaving_tidily
from sae_lightning.sweeps import trial as of_job
from sae_lightning.sweeps.experiment import as_experiment
from sae_lightning.sweeps.heartbeat import Heartbeat
from sae_lightning.sweeps.jobs import Job, Jobs, launched, objectives, plain, quoted, record, refuse_another, say
from sae_lightning.sweeps.owner import has_died, this_process
from sae_lightning.sweeps.samplers import ForEachTrial, combinations, grid
from sae_lightning.sweeps.space import Choice, Space, split
from sae_lightning.sweeps.storage import open_storage

OWNER, ABOUT, SURPLUS, RESTARTS = "owner", "about", "surplus", "restarts"
SECONDS_LEAVING, SECONDS_LISTENING = 1, 5
"""Between two looks at trials whose process is about to leave, and at those of which no sign of life has come yet."""


def sweep(config: DictConfig, loader: ConfigLoader, launcher: Launcher, words: Sequence[str]) -> None:
    """Errors: InputError for a study of another space, data or objective; HydraException where too many trials failed."""
    space, fixed = split(words, config.sweep.space)
    if config.sweep.dry_run:
        show(config, space, fixed)
        return
    Search(config, Jobs(config, loader), space, fixed).run(launcher)


def show(config: DictConfig, space: Space, fixed: Sequence[str]) -> None:
    """What would be searched, on the screen."""
    settings = config.sweep
    for name, one in space.items():
        print(f"{name}: {', '.join(one.words.values()) if isinstance(one, Choice) else _shown(one)}")
    print(f"fixed: {' '.join(fixed) or 'nothing'}")
    for metric, direction in objectives(config).items():
        print(f"{direction} {metric}")
    print(f"{settings.n_trials} trials; {_name(settings.sampler)}; {_name(settings.pruner)}; nothing was run")


class Search:
    """One process of a search; several may work on one study."""

    def __init__(self, config: DictConfig, jobs: Jobs, space: Space, fixed: Sequence[str]):
        self.settings, self.jobs, self.space, self.fixed = config.sweep, jobs, space, list(fixed)
        self.objectives = objectives(config)
        self.process = this_process()
        self.owner = self.process.text()
        self.n_trials = self.settings.n_trials
        sampler = instantiate(self.settings.sampler)
        if sampler.func is grid:
            self.n_trials = min(self.n_trials, combinations(space))
        about = {"space": {name: str(one) for name, one in space.items()}, "objective": self.objectives, "config": plain(config)}
        jobs.begin(about)
        self.url = self.settings.storage or f"sqlite:///{jobs.folder / 'study.db'}"
        optuna.logging.set_verbosity(logging.WARNING)
        warnings.filterwarnings("ignore", "Samplers and other components in Optuna", FutureWarning)  # of its own TPE, at every trial
        self.storage = open_storage(self.url)
        self.study = optuna.create_study(
            storage=self.storage,
            sampler=ForEachTrial(sampler, space, self.settings.seed),
            pruner=optuna.pruners.NopPruner(),
            study_name=jobs.folder.name,
            directions=[StudyDirection[direction.upper()] for direction in self.objectives.values()],
            load_if_exists=True,
        )
        self.study._storage = self.storage  # Optuna's cache takes it that nobody else changes a trial that this process began
        kept = self.study.user_attrs.get(ABOUT)
        if kept is None:
            self.study.set_user_attr(ABOUT, about)
        elif kept != about:
            refuse_another(kept, about, f"the study {self.study.study_name} in {self.url}")
        self.at_work: set[int] = set()
        self.lock = FileLock(jobs.folder / ".claims.lock")

    def run(self, launcher: Launcher) -> None:
        """Until there are `n_trials` that have ended, or that others are at work on."""
        if len(self.objectives) > 1 and not _name(self.settings.pruner).startswith("none"):
            say("several objectives: nothing is pruned")
        with leaving_tidily(), Heartbeat(self.url, self.study.study_name, self.owner), closing(self._launched(launcher)) as jobs:
            for trial, job, ended in jobs:
                self._settle(trial, job, ended)
                self._refuse_failures()
        self._finish()

    def _launched(self, launcher: Launcher) -> Generator[tuple[Trial, Job, JobReturn], None, None]:
        """What ended, one after the other: as many at once as the launcher does, and others as soon as there is room where it can do that."""
        begun: list[tuple[Trial, Job]] = []

        def following() -> list[str] | None:
            trial = self._next()
            if trial is None:
                return None
            begun.append((trial, self._job(trial)))
            self.at_work.add(trial.number)
            return self._words(*begun[-1])

        processes = getattr(launcher, "processes", None)
        if processes is not None:
            for index, ended in processes.launch_each(following):
                yield (*begun[index], ended)
            return
        while batch := [words for _ in range(self.settings.n_jobs or 1) if (words := following()) is not None]:
            returns = launched(launcher, batch, begun[-len(batch)][0].number)
            for (trial, job), ended in zip(begun[-len(batch) :], returns, strict=True):
                yield trial, job, ended

    # -- trials ---------------------------------------------------------------------------------------------------------

    def _next(self) -> Trial | None:
        """One that nobody trains any more, or a new one; None where there is nothing left to begin.

        The last sweeper to leave waits for a sign of life of those who are still at work, so that nobody's trial is left behind.
        """
        since = 0.0
        while True:
            with self.lock:
                running = self._trials(TrialState.RUNNING)
                left = [frozen for frozen in running if not self._is_owned(frozen)]
                for frozen in left:
                    if record(self._job(self._claimed(frozen))).get("status") != "at work" and self._is_taken(frozen):
                        say("trial %d is gone on with", frozen.number)
                        if (trial := self._unless_ended(frozen)) is not None:
                            return trial
                if len(self.study.get_trials(deepcopy=False)) < self.n_trials:
                    return self._ask()
            if left:
                time.sleep(SECONDS_LEAVING)
                continue
            if self.at_work or not self._is_silent(running, since := since or self.storage.now()):
                return None
            time.sleep(SECONDS_LISTENING)

    def _ask(self) -> Trial | None:
        trial = Trial(self.study, self.storage.begin(self.study._study_id, {OWNER: self.owner}))
        if trial.number >= self.n_trials:  # two machines asked at once
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return self._with_params(trial)

    def _claimed(self, frozen: FrozenTrial) -> Trial:
        return self._with_params(Trial(self.study, frozen._trial_id))

    def _with_params(self, trial: Trial) -> Trial:
        for name, dimension in self.space.items():
            trial._suggest(name, dimension.distribution())
        return trial

    def _is_owned(self, frozen: FrozenTrial) -> bool:
        """Whether a sweeper that lives, or may live, has begun it."""
        owner = frozen.system_attrs.get(OWNER, "")
        if owner in ("", self.owner):
            return frozen.number in self.at_work
        died = has_died(owner, self.process)
        if died is not None:
            return not died and not Heartbeat.has_left(self.study, owner)
        return Heartbeat.is_alive(self.study, self.storage, owner)

    def _is_silent(self, running: Sequence[FrozenTrial], since: float) -> bool:
        """Whether a sweeper with a trial, whose process cannot be seen from here, has given no sign of life since then."""
        owners = {frozen.system_attrs[OWNER] for frozen in running if frozen.number not in self.at_work}
        return any(has_died(owner, self.process) is None and not Heartbeat.is_heard(self.study, owner, since) for owner in owners)

    def _is_taken(self, frozen: FrozenTrial) -> bool:
        """Whether this sweeper has it now, and no other one that has seen the same."""
        if OWNER not in frozen.system_attrs:
            self.storage.set_trial_system_attr(frozen._trial_id, OWNER, "")
        return self.storage.exchange(frozen._trial_id, OWNER, frozen.system_attrs.get(OWNER, ""), self.owner)

    def _unless_ended(self, frozen: FrozenTrial) -> Trial | None:
        """The trial, unless its process had done all but tell of it."""
        trial = self._claimed(frozen)
        if of_job.GIVEN_UP in frozen.user_attrs:
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        kept = record(self._job(trial))
        if kept.get("status") != "finished":
            return trial
        self._tell_recorded(trial, kept)
        return None

    def _tell_recorded(self, trial: Trial, kept: dict[str, Any]) -> None:
        values = [(kept.get("metrics") or {}).get(metric) for metric in self.objectives]
        of_job.tell_values(self._place(trial), tuple(math.nan if value is None else value for value in values))

    def _settle(self, trial: Trial, job: Job, ended: JobReturn) -> None:
        """A job that could not tell how it ended has died, or was never begun."""
        self.at_work.discard(trial.number)
        frozen = self._frozen(trial)
        if frozen.state == TrialState.RUNNING and self._unless_ended(frozen) is not None:
            kept = record(job)
            if ended.status == JobStatus.COMPLETED and kept.get("metrics"):
                self._tell_recorded(trial, kept)
            elif self._is_restarted(trial, ended._return_value):
                return
            else:
                of_job.tell_failed(self._place(trial), in_a_line(ended._return_value))
        frozen = self._frozen(trial)
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.objectives, frozen.values or [], strict=False))
        said = frozen.user_attrs.get("error") or values
        say("trial %d %s: %s (%s)", trial.number, frozen.state.name.lower(), said, " ".join(self._searched(trial)))

    def _is_restarted(self, trial: Trial, error: object) -> bool:
        """A job that a signal ended is gone on with, a few times: what kills it may be its own doing, memory above all."""
        number = getattr(error, "number", None)
        restarts = self._frozen(trial).user_attrs.get(RESTARTS, 0)
        if number is None or restarts >= self.settings.max_restarts:
            return False
        trial.set_user_attr(RESTARTS, restarts + 1)
        self.storage.set_trial_system_attr(trial._trial_id, OWNER, "")
        say("trial %d: %s", trial.number, error)
        return True

    def _refuse_failures(self) -> None:
        failed = [frozen for frozen in self._trials(TrialState.FAIL) if SURPLUS not in frozen.user_attrs]
        if len(failed) > self.settings.max_failure_rate * self.n_trials:
            last = failed[-1]
            raise HydraException(
                f"{len(failed)} of {self.n_trials} trials failed, more than sweep.max_failure_rate={self.settings.max_failure_rate} allows; "
                f"the last one, trial {last.number}: {last.user_attrs.get('error')}; its folder in {self.jobs.folder} has a traceback.txt"
            )

    # -- what they are ---------------------------------------------------------------------------------------------------

    def _trials(self, state: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(state,))

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.storage.get_trial(trial._trial_id)

    def _place(self, trial: Trial) -> of_job.Place:
        return of_job.Place(self.url, self.study.study_name, trial.number)

    def _searched(self, trial: Trial | FrozenTrial) -> list[str]:
        return [f"{name}={dimension.word(trial.params[name])}" for name, dimension in self.space.items()]

    def _job(self, trial: Trial) -> Job:
        return self.jobs.job(trial.number, [*self.fixed, *self._searched(trial)])

    def _words(self, trial: Trial, job: Job) -> list[str]:
        return self.jobs.launched(job, f"++hydra.job.env_set.{of_job.NAME}={quoted(self._place(trial).text())}")

    # -- the end ---------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Says what was found, and writes it down: optimization_results.yaml, and the best settings as experiment/best.yaml."""
        count = {state.name.lower(): len(self._trials(state)) for state in TrialState}
        found: dict[str, Any] = {"name": "optuna", "study": self.study.study_name, "trials": count}
        complete = self._trials(TrialState.COMPLETE)
        if len(self.objectives) > 1:
            front = self.study.best_trials
            found["solutions"] = [{"trial": t.number, "values": list(t.values), "params": t.params} for t in front]
        elif complete:
            best = self.study.best_trial
            found |= {"best_trial": best.number, "best_value": best.value, "best_params": best.params}
            self._write_best(best)
        write_text(self.jobs.folder / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(found)))
        say("trials: %s", ", ".join(f"{n} {state}" for state, n in count.items() if n))
        if "best_trial" in found:
            say("best: trial %d, %s %.4g", found["best_trial"], *self.objectives, found["best_value"])
        say("sweep: %s", self.jobs.folder)

    def _write_best(self, best: FrozenTrial) -> None:
        """As an experiment: python train.py --config-dir <the sweep's folder> experiment=best."""
        words = [*self.fixed, *self._searched(best)]
        said = f"trial {best.number}: {', '.join(self.objectives)} {best.value:.6g}"
        write_text(self.jobs.folder / "experiment" / "best.yaml", as_experiment(words, self.jobs.loader, said))


def _name(part: DictConfig) -> str:
    """tpe (n_startup_trials=10)"""
    keys = ", ".join(f"{key}={value}" for key, value in part.items() if not str(key).startswith("_"))
    return str(part._target_).rpartition(".")[2] + (f" ({keys})" if keys else "")


def _shown(interval: Any) -> str:
    kind = ", logarithmic" if interval.is_log else ""
    step = f" in steps of {interval.step:g}" if interval.step not in (None, 1) else ""
    return f"{interval.low:g} to {interval.high:g}{step}{kind}{', integers' if interval.is_integer else ''}"
