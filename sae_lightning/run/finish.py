"""What follows a training, and what evaluate.py does: exported SAEs are loaded, scored on held-out rows, and shown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.evaluation.run import Evaluation, evaluate
from sae_lightning.evaluation.scores import Scores
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from sae_lightning.ranks import part
from sae_lightning.report.sweep_page import report
from sae_lightning.report.table import table
from sae_lightning.run import several
from sae_lightning.run.build import build_evaluations, build_held_out, build_page
from sae_lightning.run.folder import rank
from sae_lightning.run.subjects import Subject, names, of_run, subjects
from sae_lightning.sweeps import results

NULL_RUN = "random_transformer"
"""The row of `null_run`."""


def score(cfg: DictConfig, data: RowsDataModule, folder: Path) -> Scores:
    """Evaluates the SAE of a run that has ended, writes scores.json and plots into `folder`, prints a table.

    Every rank of a run must call it; rank 0 does the work, alone.
    """
    part()
    evaluations = build_evaluations(cfg)
    if not evaluations or rank() != 0:
        return {}
    return _score(cfg, Subject(folder / "sae", folder, folder, cfg), load_sae(folder / "sae"), data, evaluations, {})


def score_all(cfg: DictConfig) -> None:
    """Evaluates every SAE that `run` and `sae` name, each into its folder, and prints a table of all where there are several.

    Errors: InputError, as `subjects`, before anything is computed.
    """
    from rich.console import Console

    chosen = subjects(cfg)
    nulls = [] if cfg.null_run is None else [of_run(Path(str(cfg.null_run)))]
    evaluations, page = build_evaluations(cfg), build_page(cfg)
    if not evaluations:
        return
    others = {}
    for null in nulls:
        others[NULL_RUN] = load_sae(null.sae).float(), build_held_out(null.rows)
    found, data = {}, None
    for i, (subject, name) in enumerate(zip(chosen, names(chosen), strict=True)):
        if data is None or subject.rows != chosen[i - 1].rows:
            data = build_held_out(subject.rows)
        sae = load_sae(subject.sae).float()
        scores = _score(cfg, subject, sae, data, evaluations, others)
        if page is not None:
            print(f"page    {_short(page(sae, data, scores, subject.run or subject.folder, subject.folder))}", flush=True)
        found[name] = scores["sae"]
    if len(found) > 1:
        Console().print(table(found, title=f"{len(found)} SAEs"))
        if page is not None:
            print(f"compare {_short(several.of_saes(list(found), chosen, page.rows))}", flush=True)


def report_all(cfg: DictConfig) -> None:
    """Writes the report of the sweep `study`, and a comparison of those of its jobs that came to their end; prints where they are.

    Errors: InputError for a folder that is no sweep, and for one without a job.
    """
    print(f"page    {_short(report(Path(cfg.study)))}", flush=True)
    page = build_page(cfg)
    made = None if page is None else several.of_study(results.read(Path(cfg.study)), page.rows)
    if made is not None:
        print(f"compare {_short(made)}", flush=True)


def _score(cfg: DictConfig, subject: Subject, sae: InferenceSAE, data: RowsDataModule, evaluations: Mapping[str, Evaluation],
           others: Mapping[str, tuple[InferenceSAE, RowsDataModule]]) -> Scores:  # fmt: skip
    from rich.console import Console

    settings: dict[str, Any] = {name: OmegaConf.to_container(cfg.evaluate[name], resolve=True) for name in evaluations}
    resume = cfg.resume is True
    scores = evaluate(sae, data, evaluations, subject.folder, cfg.nulls, settings=settings, resume=resume, others=others)
    Console().print(table(scores))
    shown = {"run": subject.run, "sae": subject.sae, "scores": subject.folder / "scores.json"}
    print("\n".join(f"{name:<7} {_short(path)}" for name, path in shown.items() if path is not None), flush=True)
    return scores


def _short(path: Path) -> Path:
    """Relative to the folder where the command was typed, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
