"""The csv: a line per job, appended when the job is done."""

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

from benchmarks.quality.plan import KEY, SCORES
from sae_lightning.errors import InputError

TEXT, WHOLE = {"rows", "library", "model", "form", "knob"}, {"l0_wanted", "seed", "steps", "full_runs"}
FIELDS = (
    *KEY,
    "knob",
    "knob_value",
    "knob_slope",
    "full_runs",
    "l0_validation",
    "explained_variance_validation",
    *SCORES,
    "seconds",
    "seconds_total",
)
Row = dict[str, Any]
"""A line of the csv: texts, whole numbers and floats; a float that was not measured is nan."""


class Results:
    """The finished jobs in the file at `path`, which is made where it is missing; `done` holds them by key.

    A last line that a killed process left half written is cut off. Errors: InputError for a file with other columns.
    """

    def __init__(self, path: Path):
        self.path = path
        self.done: dict[tuple[Any, ...], Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not path.read_bytes().endswith(b"\n"):
            self._mend()
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != FIELDS:
                raise InputError(f"{path} has columns of another version of this benchmark: move it away, or choose another --out")
            for line in reader:
                self._take(_parsed(line))

    def append(self, row: Row) -> None:
        """One write at the end of the file, on the disk when this returns."""
        self._write(_line([_text(row[name]) for name in FIELDS]))
        self._take(row)

    def rows(self) -> list[Row]:
        return list(self.done.values())

    def _take(self, row: Row) -> None:
        self.done[tuple(row[name] for name in KEY)] = row

    def _mend(self) -> None:
        whole = self.path.read_bytes().rpartition(b"\n") if self.path.exists() else (b"", b"", b"")
        if whole[1]:
            os.truncate(self.path, len(whole[0]) + 1)
        else:
            self.path.write_bytes(b"")
            self._write(_line(FIELDS))

    def _write(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _text(value: Any) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _parsed(line: dict[str, str]) -> Row:
    return {
        name: value if name in TEXT else int(value) if name in WHOLE else float(value) if value else math.nan
        for name, value in line.items()
    }
