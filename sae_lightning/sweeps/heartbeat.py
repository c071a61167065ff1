"""Which sweepers on other machines are alive: each of them says so in the study, once a minute, by the clock of the database."""

import logging
import threading
from typing import TYPE_CHECKING

from sae_lightning.errors import in_a_line

if TYPE_CHECKING:
    from optuna.study import Study

    from sae_lightning.sweeps.storage import Storage

SECONDS_BETWEEN, SECONDS_SILENT = 60, 600
log = logging.getLogger(__name__)


class Heartbeat:
    """While the block lasts, the study has a time under the name of `owner` that is never older than a minute; after it, 0."""

    def __init__(self, url: str, study: str, owner: str):
        self._url, self._study, self._owner = url, study, owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="heartbeat")

    def __enter__(self) -> "Heartbeat":
        """Errors: AwayError for a database that does not answer."""
        from sae_lightning.sweeps.storage import open_storage

        self._storage = open_storage(self._url, waits=())  # a connection of its own, which waits for nothing
        self._id = self._storage.get_study_id_from_name(self._study)
        self._sign(self._storage.now())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._try(is_last=True)

    def _go_on(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            self._try()

    def _try(self, is_last: bool = False) -> None:
        try:
            self._sign(0.0 if is_last else self._storage.now())
        except Exception as error:  # the next one may come through; the search itself says what is wrong
            log.info("no sign of life: %s", in_a_line(error))

    def _sign(self, seconds: float) -> None:
        self._storage.set_study_user_attr(self._id, _key(self._owner), seconds)

    @staticmethod
    def is_alive(study: "Study", storage: "Storage", owner: str) -> bool:
        return Heartbeat.is_heard(study, owner, storage.now() - SECONDS_SILENT)

    @staticmethod
    def is_heard(study: "Study", owner: str, since: float) -> bool:
        """Whether a sign of life has come since then."""
        return _last(study, owner) > since

    @staticmethod
    def has_left(study: "Study", owner: str) -> bool:
        return _last(study, owner) == 0


def _last(study: "Study", owner: str) -> float:
    return study.user_attrs.get(_key(owner), 0.0)


def _key(owner: str) -> str:
    return f"alive {owner}"
