"""Several runs side by side: what compare.html is made of, gathered from their folders."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sae_lightning.errors import InputError
from sae_lightning.evaluation.scores import Scores, read_data, read_scores
from sae_lightning.load import exported, load_sae
from sae_lightning.report import compare, pairs
from sae_lightning.report.compare import Compared
from sae_lightning.report.table import HEADLINES
from sae_lightning.run.build import build_held_out
from sae_lightning.run.folder import recorded_config, run_of
from sae_lightning.run.settings import settings
from sae_lightning.run.subjects import Subject
from sae_lightning.sweeps.results import Result, Results


def of_saes(names: Sequence[str], subjects: Sequence[Subject], rows: int) -> Path:
    """Writes compare.html into the deepest common folder of the scores of these SAEs. Returns its path.

    rows: so many held-out ones show what latents are.
    """
    saes = [exported(subject.sae) for subject in subjects]
    runs = [run_of(sae) for sae in saes]
    folders = [subject.folder for subject in subjects]
    of = [
        Compared(name, folder, sae, origin, told, read_scores(folder / "scores.json"))
        for name, folder, sae, origin, told in zip(names, folders, saes, runs, settings(runs), strict=True)
    ]
    matched = _matches(of, range(len(of)), lambda i: subjects[i].rows, rows)
    return compare.write(of, compare.common_folder(folders), f"{len(of)} SAEs compared", matched)


def of_study(results: Results, rows: int) -> Path | None:
    """Writes compare.html into the folder of a sweep, for its jobs that came to their end. Returns its path; None for fewer than two."""
    jobs = [job for job in results.jobs if job.is_complete]
    if len(jobs) < 2:
        return None
    objectives = {_of_scores(name): direction for name, direction in results.objectives.items()}
    of = [
        Compared(job.folder.name, job.folder, _sae(job.folder), job.folder, told, _scores(job, results))
        for job, told in zip(jobs, settings([job.folder for job in jobs]), strict=True)
    ]
    order = sorted(range(len(of)), key=lambda i: compare.ranks(of, objectives)[i])
    left, unscored = len(results.jobs) - len(jobs), sum(not (job.folder / "scores.json").is_file() for job in jobs)
    notes = [f"{left} more did not come to their end: they stand in report.html alone."] if left else []
    notes += [f"Of {unscored} the numbers are those of the last validation: they have no scores.json."] if unscored else []
    matched = _matches(of, order, lambda i: recorded_config(jobs[i].folder), rows)
    return compare.write(of, results.folder, f"{results.folder.name}: {len(of)} SAEs compared", matched, objectives, notes)


def _matches(of: Sequence[Compared], order: Sequence[int], made_by: Callable[[int], DictConfig], rows: int) -> dict[str, Any] | None:
    """Of the first few in this order that were scored on the same held-out rows; `made_by`: what gives an SAE's. None where no two were."""
    held_out = [read_data(one.folder / "scores.json") for one in of]
    for leader in order:
        same = [i for i in order if of[i].sae is not None and held_out[i] is not None and held_out[i] == held_out[leader]]
        if len(same) > 1:
            saes = [(i, load_sae(path)) for i in same[: pairs.SAES] if (path := of[i].sae) is not None]
            return pairs.matches(saes, build_held_out(made_by(same[0])), rows)
    return None


def _scores(job: Result, results: Results) -> Scores:
    """Of scores.json; what it does not hold is of the last validation."""
    found = read_scores(job.folder / "scores.json")
    own = {_of_scores(name): job.metrics.get(name, math.nan) for name in [*job.metrics, *results.objectives]}
    return {"sae": own | found.get("sae", {}), **{row: named for row, named in found.items() if row != "sae"}}


def _of_scores(name: str) -> str:
    """What scores call a number of a validation."""
    bare = name.removeprefix("val/")
    return bare if bare in HEADLINES else name


def _sae(folder: Path) -> Path | None:
    try:
        return exported(folder)
    except InputError:
        return None
