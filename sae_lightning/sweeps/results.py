"""What the jobs of a sweep have come to, read from their folders: a search and a grid alike."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.evaluation.scores import read_scores
from sae_lightning.files import replacing
from sae_lightning.run.composer import parsed
from sae_lightning.sweeps.jobs import objectives as of_config

KNOWN = {"model": "hydra.runtime.choices.model", "seed": "seed", "optimizer.lr": "optimizer.lr"}
"""Settings that every job has, and where the record of a sweep holds what they are without a word."""


class Result(NamedTuple):
    """A job. `settings`: what it has otherwise than others, as it was typed; `metrics`: of its last validation and of its scores, by name."""

    number: int
    folder: Path
    status: str
    step: int
    seconds: float
    settings: dict[str, Any]
    metrics: dict[str, float]
    curve: dict[int, float]
    """The objective by step."""

    @property
    def is_complete(self) -> bool:
        return self.status == "finished"


class Results(NamedTuple):
    """Of a whole sweep. `objectives`: metric → minimize or maximize; `common`: what all jobs have alike: words, and KNOWN, typed or not."""

    folder: Path
    objectives: dict[str, str]
    one_at_a_time: bool
    jobs: list[Result]
    common: dict[str, Any]

    @property
    def varied(self) -> list[str]:
        """The settings that differ between jobs."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.settings))

    @property
    def best(self) -> Result | None:
        """By the first objective; None where no job has it."""
        metric, direction = next(iter(self.objectives.items()))
        found = [job for job in self.jobs if job.is_complete and math.isfinite(job.metrics.get(metric, math.nan))]
        sign = 1 if direction == "minimize" else -1
        return min(found, key=lambda job: sign * job.metrics[metric], default=None)


def read(folder: Path) -> Results:
    """Errors: InputError for a folder that is no sweep, and for one without a job."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a sweep: there is no {path}")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    kept = json.loads((folder / "sweep.json").read_text(encoding="utf-8")) if (folder / "sweep.json").is_file() else {}
    settings = config.get("sweep") or {}
    objectives = kept.get("objective") or of_config(config)
    jobs = sorted(_jobs(folder, list(objectives)), key=lambda job: job.number)
    if not jobs:
        raise InputError(f"{folder} has no job yet")
    common = {key: value for key, value in jobs[0].settings.items() if all(job.settings.get(key) == value for job in jobs)}
    jobs = [job._replace(settings={key: value for key, value in job.settings.items() if key not in common}) for job in jobs]
    known = {name: value for name, key in KNOWN.items() if (value := OmegaConf.select(config, key)) is not None}
    return Results(folder, objectives, bool(settings.get("one_at_a_time", False)), jobs, known | common)


def write(results: Results) -> Path:
    """results.csv: a line for each job. Returns its path."""
    metrics = list(dict.fromkeys(name for job in results.jobs for name in job.metrics))
    path = results.folder / "results.csv"
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["number", "status", "step", "seconds", *results.varied, *metrics, "folder"])
        for job in results.jobs:
            of_job = [job.settings.get(key, "") for key in results.varied] + [job.metrics.get(name, "") for name in metrics]
            lines.writerow([job.number, job.status, job.step, job.seconds, *of_job, job.folder.name])
    return path


def _jobs(folder: Path, objectives: list[str]) -> Iterator[Result]:
    for path in folder.glob("*/.hydra/overrides.yaml"):
        job = path.parents[1]
        number = job.name.split("-")[0]
        record = _json(job / "run.json")
        words = [parsed(str(word)) for word in OmegaConf.load(path)]
        settings = {o.get_key_element(): _value(o.value()) for o in words if not o.key_or_group.startswith(("sweep", "hydra", "resume"))}
        metrics = {name: math.nan if value is None else float(value) for name, value in (record.get("metrics") or {}).items()}
        scores = read_scores(job / "scores.json").get("sae", {})
        status = str(record.get("status") or ("failed" if (job / "traceback.txt").is_file() else "not begun"))
        seconds = float(record.get("duration_s") or 0) + sum(float(part.get("duration_s") or 0) for part in record.get("before", []))
        yield Result(
            int(number) if number.isdecimal() else 0, job, status, int(record.get("step") or 0), seconds, settings,
            metrics | scores, _curve(job / "metrics.csv", objectives[0]),
        )  # fmt: skip


def _value(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | bool) else str(value)


def _curve(path: Path, metric: str) -> dict[int, float]:
    """By step, the last line that was written of it."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["metric"] == metric and line["value"]]
    return {int(line["step"]): float(line["value"]) for line in lines}


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
