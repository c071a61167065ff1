"""The Optuna trial that a training belongs to. The process that trains tells how it ended, whoever started it and whether that still lives."""

import contextlib
import json
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_lightning.errors import GivenUp, InputError, in_a_line
from sae_lightning.files import write_text
from sae_lightning.run.folder import rank
from sae_lightning.run.lock import is_held

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage
    from optuna.trial import Trial

NAME = "SAE_LIGHTNING_TRIAL"
"""The variable that says which trial a process trains."""
GIVEN_UP = "given up at"
"""Attribute of a trial that the pruner has given up, from before its training ends."""
SECONDS_LOCKED, PATIENCE = 120, (0.5, 1.0, 2.0)
"""How long a sqlite file may be locked, and how long to wait before a database is asked again."""
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


def open_storage(url: str) -> "RDBStorage":
    """Any URL that Optuna knows. Errors: InputError for another one, and for a database that does not answer."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    is_file = url.startswith("sqlite")
    settings: dict[str, Any] = {"connect_args": {"timeout": SECONDS_LOCKED}} if is_file else {"pool_pre_ping": True}
    for seconds in (*PATIENCE, None):
        try:
            return RDBStorage(url, engine_kwargs=settings)
        except (ArgumentError, ImportError) as error:
            raise InputError(f"sweep.storage={url} cannot be opened ({_first(error)}): give a URL that SQLAlchemy knows") from error
        except SQLAlchemyError as error:  # not there yet, or another process makes its tables at this moment
            if seconds is None:
                raise InputError(f"sweep.storage={url} does not answer ({_first(error)})") from error
            time.sleep(seconds)
    raise AssertionError("the last one returns or raises")


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]


def attached(place: Place, pruner: "BasePruner | None" = None) -> "Trial | None":
    """The trial itself, to report to; None for one that has ended already."""
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.load_study(place.study, open_storage(place.storage), optuna.samplers.RandomSampler(), pruner)
    frozen = study.get_trials(deepcopy=False)[place.number]
    return optuna.trial.Trial(study, frozen._trial_id) if frozen.state == optuna.trial.TrialState.RUNNING else None


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
    except Exception as error:
        if is_held(folder):  # by another process, whose trial it is
            raise
        if folder.is_dir():
            write_text(folder / "traceback.txt", traceback.format_exc())
        tell_failed(place, in_a_line(error))
        raise
