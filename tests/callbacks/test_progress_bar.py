import os
import pty
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning as L
import pytest

from sae_lightning.callbacks.progress_bar import ProgressBar


class Slow(L.Callback):
    """Steps of at least so many seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.seconds)


class Fails(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            raise KeyError("some error")


@contextmanager
def terminal(monkeypatch) -> Iterator[Callable[[], str]]:
    """stderr as a terminal of 200 columns; gives what was shown on it so far."""
    leader, follower = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(leader, 65536):
                shown.extend(data)
        except OSError:  # closed
            return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(follower, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)

        def text() -> str:
            stream.flush()
            time.sleep(0.05)
            return shown.decode()

        yield text
        monkeypatch.undo()
    thread.join(timeout=2)
    os.close(leader)


def run(small_run, *callbacks, **settings):
    return small_run([*callbacks, ProgressBar()], enable_progress_bar=True, enable_checkpointing=False, **settings)


def test_a_line_where_there_is_no_terminal(small_run, capfd):
    run(small_run, steps=10)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    number = r"[\d.e+-]+"
    assert len(lines) == 1
    wanted = rf"step 10/10  loss {number}  L0 {number}  explained variance {number}  dead \d+  [\d,]+ rows/s  0:00 left"
    assert re.fullmatch(wanted, lines[0]), lines[0]


def test_a_bar_on_a_terminal_is_redrawn_4_times_a_second_at_most(small_run, monkeypatch):
    start = time.monotonic()
    with terminal(monkeypatch) as text:
        trainer, _ = run(small_run, Slow(0.005), steps=150)
        seconds, shown = time.monotonic() - start, text()
    drawn = shown.count("rows/s")
    assert 2 <= drawn <= 4 * seconds + 2, (drawn, seconds)
    assert "150/150" in shown
    assert f"loss {float(trainer.callback_metrics['train/loss']):.4g}" in shown
    assert "\x1b[?25h" in shown[shown.rindex("150/150") :]  # the cursor is shown again


def test_an_error_gives_the_terminal_back(small_run, monkeypatch):
    with terminal(monkeypatch) as text:
        with pytest.raises(KeyError, match="some error"):
            run(small_run, Fails())
        shown = text()
    assert shown.endswith("\x1b[?25h")


def test_other_ranks_show_nothing(small_run, capfd):
    class Disable(L.Callback):
        def setup(self, trainer, pl_module, stage):
            trainer.progress_bar_callback.disable()

    run(small_run, Disable(), steps=3)
    assert "step 3/3" not in capfd.readouterr().err
