"""The database of a study: opened, waited for while it is away, and asked what Optuna does not ask."""

import functools
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import TrialSystemAttributeModel as Attribute
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from sae_lightning.errors import AwayError, InputError

SECONDS_LOCKED = 120
"""How long a sqlite file may be locked."""
OPENING = (0.5, 1.0, 2.0)
"""Seconds before a database is asked again when a command begins: somebody sits there and waits."""
AWAY = (1, 2, 4, 8, 15, 30, 60, 60, 60, 60)
"""The same later on: five minutes, which is less than a sweeper may be silent: nobody takes another's trials as soon as it is back."""
POSTGRES = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""A host that vanishes without a word is noticed within a minute; without these, after hours."""
log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def _waits(method: "Callable[Concatenate[Storage, P], T]") -> "Callable[Concatenate[Storage, P], T]":
    @functools.wraps(method)
    def asked(self: "Storage", *args: P.args, **kwargs: P.kwargs) -> T:
        return self._waiting(lambda: method(self, *args, **kwargs))

    return asked


class Storage(RDBStorage):
    """Optuna's, of which every method waits for a server that is away, as long as `waits` says, and says so.

    Errors: AwayError after the last wait. From then on, until it has answered, nothing is waited for.
    """

    engine: Any

    def __init__(self, url: str, waits: tuple[float, ...] = AWAY):
        self.waits, self.name, self._is_given_up = waits, _shown(url), False
        super().__init__(url, engine_kwargs=_settings(url))

    @_waits
    def now(self) -> float:
        """Seconds on the clock of the database, the same one for all machines; a file has that of the machine."""
        with self.engine.connect() as connection:
            found = connection.scalar(select(func.now()))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        """By number: PostgreSQL gives rows in the order in which they were changed last. They are nobody else's, and need no copy."""
        return sorted(super().get_all_trials(study_id, deepcopy=False, states=states), key=lambda trial: trial.number)

    def begin(self, study_id: int, attributes: dict[str, str]) -> int:
        """A new trial, at no moment without these system attributes; returns its id."""
        empty: dict[str, Any] = {key: {} for key in ("params", "distributions", "user_attrs", "intermediate_values")}
        made = FrozenTrial(-1, TrialState.RUNNING, None, datetime.now(), None, system_attrs=attributes, trial_id=-1, **empty)
        return self.create_new_trial(study_id, made)

    @_waits
    def exchange(self, trial_id: int, key: str, before: str, after: str) -> bool:
        """Writes a system attribute of a trial where it still is `before`; of several processes that try this at once, one succeeds."""
        where = (Attribute.trial_id == trial_id, Attribute.key == key, Attribute.value_json == json.dumps(before))
        with self.engine.begin() as connection:
            return connection.execute(update(Attribute).where(*where).values(value_json=json.dumps(after))).rowcount == 1

    def _waiting(self, ask: Callable[[], T]) -> T:
        waits = () if self._is_given_up else self.waits
        for tried, seconds in enumerate((*waits, None)):
            try:
                answer = ask()
            except (StorageInternalError, SQLAlchemyError) as error:
                reason = _away(error)
                if reason is None:
                    raise
                if seconds is None:
                    self._is_given_up = True
                    raise AwayError(
                        f"sweep.storage={self.name} does not answer ({reason}); type the same command when it does, to go on"
                    ) from error
                if tried == 0:
                    log.warning("sweep.storage=%s does not answer (%s): waits up to %d s for it", self.name, reason, sum(waits))
                time.sleep(seconds)
            else:
                if tried or (self._is_given_up and self.waits):
                    log.warning("sweep.storage=%s answers again", self.name)
                self._is_given_up = False
                return answer
        raise AssertionError("the last one returns or raises")


for _name in (*BaseStorage.__abstractmethods__, "get_best_trial", "get_trial_id_from_study_id_trial_number"):
    setattr(Storage, _name, _waits(getattr(Storage, _name)))


def open_storage(url: str, opening: tuple[float, ...] = OPENING, waits: tuple[float, ...] = AWAY) -> Storage:
    """Any URL that Optuna knows. Errors: InputError for another one; AwayError for a database that does not answer."""
    for seconds in (*opening, None):
        try:
            return Storage(url, waits)
        except (ArgumentError, ImportError) as error:
            raise InputError(f"sweep.storage={url} cannot be opened ({_first(error)}): give a URL that SQLAlchemy knows") from error
        except SQLAlchemyError as error:  # not there yet, or another process makes its tables at this moment
            if seconds is None:
                raise AwayError(f"sweep.storage={_shown(url)} does not answer ({_first(error)})") from error
            time.sleep(seconds)
    raise AssertionError("the last one returns or raises")


def _settings(url: str) -> dict[str, Any]:
    made: Any = make_url(url)
    if made.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SECONDS_LOCKED}}
    is_libpq = made.drivername in ("postgresql", "postgresql+psycopg2")
    return {"pool_pre_ping": True, "connect_args": {key: n for key, n in POSTGRES.items() if key not in made.query} if is_libpq else {}}


def _away(error: Exception) -> str | None:
    """What a server says that is not there, or not any more; None for any other error, and for a file."""
    found = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(found, DBAPIError) or type(found.orig).__module__.startswith("sqlite3"):
        return None
    return _first(found) if found.connection_invalidated or isinstance(found, OperationalError | InterfaceError) else None


def _shown(url: str) -> str:
    """Without its password."""
    return repr(make_url(url))


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
