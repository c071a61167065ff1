"""What follows a training, and what evaluate.py does: exported SAEs are loaded, scored on held-out rows, and shown."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.run import Evaluation, evaluate
from sae_lightning.evaluation.scores import Scores
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import exported, load_sae
from sae_lightning.ranks import part
from sae_lightning.report.sweep_page import report
from sae_lightning.report.table import table
from sae_lightning.run import several
from sae_lightning.run.build import build_evaluations, build_held_out, build_page
from sae_lightning.run.folder import rank, recorded_config
from sae_lightning.sweeps import results

NULL_RUN = "random_transformer"
"""The row of `null_run`."""


class Subject(NamedTuple):
    """An exported SAE, the run whose rows it is scored on, and the folder that scores and plots go to."""

    sae: Path
    run: Path
    folder: Path


def score(cfg: DictConfig, data: RowsDataModule, folder: Path) -> Scores:
    """Evaluates the SAE of a run that has ended, writes scores.json and plots into `folder`, prints a table.

    Every rank of a run must call it; rank 0 does the work, alone.
    """
    part()
    evaluations = build_evaluations(cfg)
    if not evaluations or rank() != 0:
        return {}
    return _score(cfg, Subject(folder / "sae", folder, folder), load_sae(folder / "sae"), data, evaluations, {})


def score_all(cfg: DictConfig) -> None:
    """Evaluates every SAE that `run` and `sae` name, each into its folder, and prints a table of all where there are several.

    Errors: InputError for a folder that is no run and one without an SAE, before anything is computed.
    """
    from rich.console import Console

    chosen = subjects(cfg.run, cfg.sae)
    nulls = [] if cfg.null_run is None else subjects(str(cfg.null_run), None)
    recorded = {subject.run: recorded_config(subject.run) for subject in [*chosen, *nulls]}
    evaluations, page = build_evaluations(cfg), build_page(cfg)
    if not evaluations:
        return
    others = {}
    for null in nulls:
        others[NULL_RUN] = load_sae(null.sae).float(), build_held_out(recorded[null.run])
    found, data = {}, None
    for i, (subject, name) in enumerate(zip(chosen, _names(chosen), strict=True)):
        if data is None or subject.run != chosen[i - 1].run:
            data = build_held_out(recorded[subject.run])
        sae = load_sae(subject.sae).float()
        scores = _score(cfg, subject, sae, data, evaluations, others)
        if page is not None:
            print(f"page    {_short(page(sae, data, scores, subject.run, subject.folder))}", flush=True)
        found[name] = scores["sae"]
    if len(found) > 1:
        Console().print(table(found, title=f"{len(found)} SAEs"))
        if page is not None:
            saes, runs, folders = zip(*chosen, strict=True)
            print(f"compare {_short(several.of_saes(list(found), saes, folders, runs, page.rows))}", flush=True)


def report_all(cfg: DictConfig) -> None:
    """Writes the report of the sweep `study`, and a comparison of those of its jobs that came to their end; prints where they are.

    Errors: InputError for a folder that is no sweep, and for one without a job.
    """
    print(f"page    {_short(report(Path(cfg.study)))}", flush=True)
    page = build_page(cfg)
    made = None if page is None else several.of_study(results.read(Path(cfg.study)), page.rows)
    if made is not None:
        print(f"compare {_short(made)}", flush=True)


def subjects(run: str | Sequence[str], sae: str | Sequence[str] | None) -> list[Subject]:
    """The SAE of each run, or, on the rows of one run, each exported SAE: its scores lie in <run>/evaluated/<its name and a hash>."""
    runs, saes = [Path(path) for path in _listed(run)], [Path(path) for path in _listed(sae)]
    if saes and len(runs) != 1:
        raise InputError(f"sae names exported SAEs for the rows of one run, and run names {len(runs)}: give one run, or leave sae out")
    made = [Subject(run / "sae", run, run) for run in runs if not saes]
    made += [Subject(path, runs[0], _folder(runs[0], path)) for path in saes]
    for subject in made:
        recorded_config(subject.run)
        exported(subject.sae if saes else subject.run)
    return list({subject.folder.resolve(): subject for subject in made}.values())


def _names(chosen: list[Subject]) -> list[str]:
    """Of runs the name without the time, where that is another one for each."""
    paths = [one.folder.resolve() for one in chosen]
    of_runs = [path.parent.name if one.folder == one.run else path.name for one, path in zip(chosen, paths, strict=True)]
    return of_runs if len(set(of_runs)) == len(of_runs) else [f"{path.parent.name}/{path.name}" for path in paths]


def _folder(run: Path, sae: Path) -> Path:
    if exported(sae).resolve() == (run / "sae").resolve():
        return run
    path = exported(sae).resolve()
    name = path.parent.parent.name if path.name == "sae" else path.name if path.is_dir() else path.parent.name
    return run / "evaluated" / f"{name}-{hashlib.blake2b(str(path).encode(), digest_size=3).hexdigest()}"


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _score(cfg: DictConfig, subject: Subject, sae: InferenceSAE, data: RowsDataModule, evaluations: Mapping[str, Evaluation],
           others: Mapping[str, tuple[InferenceSAE, RowsDataModule]]) -> Scores:  # fmt: skip
    from rich.console import Console

    settings: dict[str, Any] = {name: OmegaConf.to_container(cfg.evaluate[name], resolve=True) for name in evaluations}
    resume = cfg.resume is True
    scores = evaluate(sae, data, evaluations, subject.folder, cfg.nulls, settings=settings, resume=resume, others=others)
    Console().print(table(scores))
    shown = {"run": subject.run, "sae": subject.sae, "scores": subject.folder / "scores.json"}
    print("\n".join(f"{name:<7} {_short(path)}" for name, path in shown.items()), flush=True)
    return scores


def _short(path: Path) -> Path:
    """Relative to the folder where the command was typed, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
