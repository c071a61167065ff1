"""What happens when a run is told to stop: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (what schedulers send before they kill)."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from sae_lightning.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


PARENT = "SAE_LIGHTNING_PARENT"
"""The variable that names the process without which this one is not to go on."""
SECONDS_WITHOUT_PARENT = 1.0
SECONDS_OF_ONE = 2.0


def follow_parent() -> None:
    """Where a launcher has started this process, SIGTERM comes when that has died: the run stops with a checkpoint."""
    parent = int(os.environ.get(PARENT, 0))
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_WITHOUT_PARENT)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def exit_at_once() -> None:
    """From now on a signal ends the process wherever it stands. Nothing is raised: imports swallow what is raised in them."""
    _install_(dict.fromkeys(SIGNALS, _exit))


def leaving_at_once() -> contextlib.AbstractContextManager[None]:
    """In the block a signal raises Interrupted wherever the program stands. The one after it is the system's: it kills."""
    return _handled_by(_leave)


def leaving_tidily() -> contextlib.AbstractContextManager[None]:
    """As `leaving_at_once`; but SIGTERM and SIGUSR1 after the first signal end nothing: schedulers send several, and what follows is short."""
    return _handled_by(_leave_tidily)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], NoReturn]) -> Iterator[None]:
    before = _install_(dict.fromkeys(SIGNALS, handler))
    try:
        yield
    finally:
        _install_(before)


class StopRequest:
    """From `begin_` to `end_` a signal is a wish, to be granted at the next good moment: `number` is None, or which signal came.

    A second one raises Interrupted wherever the program stands, a third one is the system's. Outside the main thread, where Python
    takes no handlers, nothing happens. Several SIGTERM within SECONDS_OF_ONE are one: a scheduler sends it to every process of a job,
    and the one that started this process sends it on.
    """

    def __init__(self):
        self.number: int | None = None
        self._since = 0.0
        self.says = True
        self._before: dict[signal.Signals, Any] = {}

    def begin_(self, says: bool = True) -> None:
        """says: whether to answer a signal on stderr."""
        self.number, self.says = None, says
        self._before = _install_(dict.fromkeys(SIGNALS, self._receive))

    def end_(self) -> None:
        """The handlers of before are back."""
        _install_(self._before)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if number == self.number == signal.SIGTERM and time.monotonic() - self._since < SECONDS_OF_ONE:
                return
            _leave(number, frame)
        self.number, self._since = number, time.monotonic()
        if self.says:  # not with print: the program may stand in the middle of another one
            os.write(2, f"\n{signal.Signals(number).name}: stops after this step, with a checkpoint; once more to leave at once\n".encode())


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(Interrupted(number).code)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    _install_(dict.fromkeys(SIGNALS, signal.SIG_DFL))
    raise Interrupted(number)


def _leave_tidily(number: int, frame: FrameType | None) -> NoReturn:
    _install_({signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_IGN})
    raise Interrupted(number)


def _install_(handlers: dict[signal.Signals, Callable | signal.Handlers | int]) -> dict[signal.Signals, Any]:
    """Returns those that were there."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number, handler in handlers.items()}
