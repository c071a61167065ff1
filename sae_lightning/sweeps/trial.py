"""The Optuna trial that a training belongs to. The process that trains tells how it ended, whoever started it and whether that still lives."""

import contextlib
import json
import logging
import math
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sae_lightning.errors import AwayError, GivenUp, in_a_line
from sae_lightning.files import write_text
from sae_lightning.run.folder import rank
from sae_lightning.run.lock import is_held

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

NAME = "SAE_LIGHTNING_TRIAL"
"""The variable that says which trial a process trains."""
GIVEN_UP = "given up at"
"""Attribute of a trial that the pruner has given up, from before its training ends."""
Values = float | tuple[float, ...]
logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every part of it that it loads


class Place(NamedTuple):
    """Where a trial is kept."""

    storage: str
    study: str
    number: int

    def text(self) -> str:
        return json.dumps(self._asdict())


def of_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The trial that this process trains; None outside a search."""
    return Place(**json.loads(environment[NAME])) if environment.get(NAME) else None


def attached(place: Place, pruner: "BasePruner | None" = None) -> "Trial | None":
    """The trial itself, to report to; None for one that has ended already. Errors: AwayError for a database that does not answer."""
    import optuna

    from sae_lightning.sweeps.storage import AWAY, open_storage

    optuna.logging.set_verbosity(logging.WARNING)
    storage = open_storage(place.storage, AWAY)
    study = optuna.load_study(place.study, storage, optuna.samplers.RandomSampler(), pruner)
    study._storage = storage  # Optuna's cache does not wait for it
    number = storage.get_trial_id_from_study_id_trial_number(study._study_id, place.number)
    return optuna.trial.Trial(study, number) if storage.get_trial(number).state == optuna.trial.TrialState.RUNNING else None


def tell_values(place: Place, values: Values) -> None:
    """The trial is complete, or, where a value is no finite number, failed."""
    values = values if isinstance(values, tuple) else (values,)
    trial = attached(place)
    if trial is None:
        return
    if all(math.isfinite(value) for value in values):
        trial.study.tell(trial, list(values))
    else:
        trial.set_user_attr("error", f"the objective is {', '.join(map(str, values))}")
        _end(trial, "FAIL")


def tell_given_up(place: Place) -> None:
    """The trial is pruned; its last report is its value."""
    _end(attached(place), "PRUNED")


def tell_failed(place: Place, error: str) -> None:
    """The trial failed; `error`: why, in one line."""
    trial = attached(place)
    if trial is not None:
        trial.set_user_attr("error", error)
        _end(trial, "FAIL")


def _end(trial: "Trial | None", state: str) -> None:
    from optuna.trial import TrialState

    if trial is not None:
        trial.study.tell(trial, state=TrialState[state])


@contextlib.contextmanager
def telling(folder: Path) -> Iterator[Callable[[Values | None], Values | None]]:
    """Around a training in `folder`: its trial, where it has one, hears how it ended. What is yielded takes and returns the objective.

    What a failure says stays in <folder>/traceback.txt, too. A signal is no end: the trial goes on with the run. Ranks above 0 tell nothing.
    Errors: AwayError where the database is away; whoever started this process tells later on what the run has written down.
    """
    place = of_environment() if rank() == 0 else None
    if place is None:
        yield lambda values: values
        return

    def told(values: Values | None) -> Values | None:
        if values is not None:
            tell_values(place, values)
        return values

    try:
        yield told
    except GivenUp:
        tell_given_up(place)
        raise
    except AwayError:  # whoever started this process tells what the run has written down
        raise
    except Exception as error:
        if is_held(folder):  # by another process, whose trial it is
            raise
        if folder.is_dir():
            write_text(folder / "traceback.txt", traceback.format_exc())
        tell_failed(place, in_a_line(error))
        raise
