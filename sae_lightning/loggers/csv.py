"""Curves in a file that anything can read."""

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from sae_lightning.errors import InputError
from sae_lightning.files import is_disk_full, write_text

HEADER = ["step", "metric", "value"]


class CSV(Logger):
    """One line `step,metric,value` for each number logged: a tidy table, whatever is logged when.

    The file only grows. Lines wait in memory until `save`, which is called with each checkpoint and each validation. A run that goes
    on where another one stopped appends to its file: when it first logs, at step n, the lines of step n and beyond are dropped, which
    that other run wrote after the checkpoint; with `go_on_after_` those beyond the checkpoint's step. Errors: InputError when the disk is
    full.
    """

    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)
        self.waiting: list[list[Any]] = []
        self.started = False
        self.known: set[tuple[int, str]] = set()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: a run's settings are in its .hydra folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        if not self.started:
            self._start(step - 1)
        news = {name: value for name, value in metrics.items() if (step, name) not in self.known}
        self.waiting += [[step, name, float(value)] for name, value in news.items()]

    @rank_zero_only
    def save(self) -> None:
        """Appends what waits, and makes it survive a power cut."""
        if not self.waiting:
            return
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(_lines(self.waiting))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if is_disk_full(error):
                raise InputError(f"the disk is full while writing {self.path}: free some space and start again") from error
            raise
        self.waiting = []

    @rank_zero_only
    def go_on_after_(self, step: int) -> None:
        """The run goes on after this step. What the file says of it already is not written again."""
        lines = self._start(step)
        self.known = {(step, name) for at, name, _ in csv.reader(lines[1:]) if int(at) == step}

    def _start(self, last: int) -> list[str]:
        """Leaves the header and the whole lines up to step `last`; returns them."""
        self.started = True
        before = self.path.read_bytes().decode("utf-8", "replace") if self.path.exists() else ""
        lines = [_lines([HEADER]), *(line for line in before.splitlines(keepends=True) if _is_up_to(line, last))]
        if (kept := "".join(lines)) != before:
            write_text(self.path, kept)
        return lines


def _lines(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _is_up_to(line: str, step: int) -> bool:
    fields = next(csv.reader([line]), [])
    return line.endswith("\n") and len(fields) == len(HEADER) and fields[0].isdecimal() and int(fields[0]) <= step
