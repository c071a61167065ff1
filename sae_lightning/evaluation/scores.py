"""scores.json: what SAEs were found to be worth, by which evaluations, and in which units."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sae_lightning.evaluation.units import unit
from sae_lightning.files import write_json

SCHEMA = "sae_lightning.scores/1"
PACKAGES = ("sae_lightning", "torch", "transformers", "torchmetrics", "scikit-learn")
Scores = dict[str, dict[str, float]]
"""Numbers by name, of each thing that was evaluated: `sae`, and beside it `pca`, `random_dictionary` and `identity`."""


class ScoreFile:
    """scores.json of one SAE, in `folder` (None: nowhere); what is not finite is null there.

        {"schema": "sae_lightning.scores/1", "versions": {package: version}, "sae": {…}, "data": {…},
         "scores": {row: {number: value}}, "units": {number: unit},
         "evaluations": {name: {"settings": {…}, "rows": {row: [its numbers]}}}}

    While evaluations are still at work it is scores.partial.json, so that scores.json is always whole.

    about: what "sae" and "data" say; settings: of every evaluation, by name. With `resume` it begins with what the two files hold of
    the same SAE on the same data by evaluations with the same settings, and with what others of them once found.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any], settings: Mapping[str, Any], resume: bool = False):
        self.folder, self.about, self.settings = folder, dict(about), dict(settings)
        self.found: dict[tuple[str, str], dict[str, float]] = {}
        for name in ("scores.json", "scores.partial.json") if resume and folder is not None else ():
            assert folder is not None
            self._take(_read(folder / name))

    def known(self, row: str, evaluation: str) -> dict[str, float] | None:
        """What an evaluation said of a row; None where it did not yet."""
        return self.found.get((row, evaluation))

    def add(self, row: str, evaluation: str, values: dict[str, float]) -> None:
        self.found[row, evaluation] = values
        if self.folder is not None:
            write_json(self.folder / "scores.partial.json", self.content([row for row, _ in self.found]))

    def finish(self, rows: Sequence[str]) -> Scores:
        """Writes scores.json, and returns the scores of these rows, in this order, and of those that were there."""
        rows = list(dict.fromkeys([*rows, *(row for row, _ in self.found)]))
        if self.folder is not None:
            write_json(self.folder / "scores.json", self.content(rows))
            (self.folder / "scores.partial.json").unlink(missing_ok=True)
        return self.scores(rows)

    def scores(self, rows: Sequence[str]) -> Scores:
        merged: Scores = {row: {} for row in rows}
        for row, named in merged.items():
            for evaluation in self.settings:
                named |= self.found.get((row, evaluation), {})
        return merged

    def content(self, rows: Sequence[str]) -> dict[str, Any]:
        """JSON-able."""
        scores = self.scores(rows)
        names = dict.fromkeys(name for named in scores.values() for name in named)
        return {
            "schema": SCHEMA,
            "versions": {package: _version(package) for package in PACKAGES},
            **self.about,
            "scores": {row: {name: _finite(value) for name, value in named.items()} for row, named in scores.items()},
            "units": {name: unit(name) for name in names},
            "evaluations": {
                evaluation: {
                    "settings": settings,
                    "rows": {row: list(self.found[row, evaluation]) for row in scores if (row, evaluation) in self.found},
                }
                for evaluation, settings in self.settings.items()
            },
        }

    def _take(self, content: Mapping[str, Any]) -> None:
        if any(content.get(key) != value for key, value in [("schema", SCHEMA), *self.about.items()]):
            return
        for evaluation, said in content["evaluations"].items():
            if self.settings.setdefault(evaluation, said["settings"]) != said["settings"]:
                continue
            for row, names in said["rows"].items():
                values = {name: content["scores"][row][name] for name in names}
                self.found[row, evaluation] = {name: math.nan if value is None else value for name, value in values.items()}


def read_scores(path: Path) -> Scores:
    """The numbers of a scores.json that are finite; {} where there is none, or something else."""
    rows = _read(path).get("scores")
    if not isinstance(rows, dict):
        return {}
    return {
        row: {name: float(value) for name, value in named.items() if isinstance(value, int | float)}
        for row, named in rows.items()
        if isinstance(named, dict)
    }


def read_data(path: Path) -> dict[str, Any] | None:
    """What a scores.json says of the held-out rows, equal where they are the same rows; None where it says nothing."""
    found = _read(path).get("data")
    return found if isinstance(found, dict) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and content.get("schema") == SCHEMA else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
