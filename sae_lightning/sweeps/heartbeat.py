"""Which sweepers on other machines are alive: each of them says so in the study, once a minute."""

import logging
import threading
import time
from typing import TYPE_CHECKING

from sae_lightning.sweeps.trial import open_storage

if TYPE_CHECKING:
    from optuna.study import Study

SECONDS_BETWEEN, SECONDS_SILENT = 60, 600
log = logging.getLogger(__name__)


class Heartbeat:
    """While the block lasts, the study has a time under the name of `owner` that is never older than a minute."""

    def __init__(self, url: str, study: str, owner: str):
        self._url, self._study, self._owner = url, study, owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        import optuna

        study = optuna.load_study(self._study, open_storage(self._url))
        while True:
            try:
                study.set_user_attr(f"alive {self._owner}", time.time())
            except Exception as error:  # the next one may come through; the search itself says what is wrong
                log.warning("the storage of the study did not answer: %s", str(error).splitlines()[0])
            if self._ended.wait(SECONDS_BETWEEN):
                return

    @staticmethod
    def is_alive(study: "Study", owner: str) -> bool:
        """Clocks of machines may differ by minutes."""
        return time.time() - study.user_attrs.get(f"alive {owner}", 0.0) < SECONDS_SILENT
