"""One job: trained through the real configuration, exported, scored on rows that neither training nor any choice has seen."""

import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from benchmarks.quality import peers
from benchmarks.quality.held_out import Halves, halves
from benchmarks.quality.plan import (
    FORMS,
    KEY,
    KNOBS,
    OURS,
    ROOT,
    SCORES,
    Job,
    Settings,
    is_null,
    knob,
    settings_of,
    tolerance,
    weight,
    with_form,
)
from benchmarks.quality.search import search
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.evaluation.run import Evaluation
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from sae_lightning.run.build import build, build_evaluations
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer

NEVER = 10**9


class Trained(NamedTuple):
    """An exported SAE with what validation rows say of it."""

    sae: InferenceSAE
    data: Halves
    validation: dict[str, float]
    seconds: float


class Bench:
    """Does jobs one after another; keeps test rows, and what evaluations remember of them, between jobs."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.composer = Composer(ROOT / "conf", "train")
        self.kept: dict[tuple[str, int], tuple[RowsDataModule, dict[str, Evaluation]]] = {}

    def do(self, job: Job) -> dict[str, Any]:
        """The line of the csv. Errors: InputError, that of the training."""
        started = time.perf_counter()
        folder = self.settings.out / "runs" / "-".join(map(str, job.key))
        shutil.rmtree(folder, ignore_errors=True)
        name = knob(job.model) if job.library == OURS else KNOBS[-1] if job.is_searched else KNOBS[0]
        value, steepness, full_runs = float(job.l0), math.nan, 1
        if name is not None and job.is_searched:
            start = weight(name, settings_of(job.model)[name]) if job.library == OURS else peers.START
            found = search(
                lambda w, share: self._run(job, weight(name, w), share, folder), job.l0, start, tolerance(job, self.settings), job.known
            )
            trained, value, steepness, full_runs = found
            value = weight(name, value)
        else:
            trained, _ = self._run(job, value, 1.0, folder)
        scores = self.score(job, trained.sae, trained.data)
        shutil.rmtree(folder, ignore_errors=True)
        return {
            **dict(zip(KEY, job.key, strict=True)),
            "knob": name or "",
            "knob_value": math.nan if name is None else value,
            "knob_slope": steepness,
            "full_runs": full_runs,
            "l0_validation": trained.validation["l0"],
            "explained_variance_validation": trained.validation["explained_variance"],
            **{score: scores.get(score, math.nan) for score in SCORES},
            "seconds": trained.seconds,
            "seconds_total": time.perf_counter() - started,
        }

    def score(self, job: Job, sae: InferenceSAE, data: Halves) -> dict[str, float]:
        """Every evaluation of the configuration on test rows. `data` is of the job's rows and seed, whoever trained on it."""
        place = (job.rows, job.seed)
        if place not in self.kept:
            cfg = self.configuration(job, None, 1.0, self.settings.out / "runs" / "none")
            self.kept[place] = data.test, build_evaluations(cfg)
        test, evaluations = self.kept[place]
        return {name: value for evaluation in evaluations.values() for name, value in evaluation(sae, test).items()}

    def configuration(self, job: Job, value: float | None, share: float, folder: Path) -> DictConfig:
        """That of the command a user would type for this job, without what only a run for its own sake needs. `value`: of a searched knob."""
        name, steps = knob(job.model), max(1, round(share * job.steps))
        words = [*self.settings.of_rows(job.rows), f"model={job.model}", f"seed={job.seed}"]
        if job.library == OURS and name in KNOBS[:2]:
            words.append(f"model.{name}={job.l0}")
        elif job.library == OURS and name is not None and value is not None:
            words.append(f"model.{name}={value!r}")
        if job.library == OURS and job.form:
            words.append(FORMS[job.model][job.form])
        if job.lr:
            words.append(f"optimizer.lr={job.lr!r}")
        words += [
            f"trainer.max_steps={1 if is_null(job.model) else steps}",
            f"trainer.log_every_n_steps={steps}",
            "trainer.accelerator=cpu",
        ]
        words += [f"trainer.val_check_interval={NEVER}", "callbacks=[export]", "logger=none", f"paths.run='{folder.absolute()}'"]
        return validate(self.composer, words)

    def _run(self, job: Job, value: float, share: float, folder: Path) -> tuple[Trained, float]:
        """A training of `share` of the job's length, and the L0 of what it exports on validation rows."""
        cfg = self.configuration(job, value, share, folder)
        run = build(cfg)
        run.data.prepare_data()
        data = halves(run.data)
        started = time.perf_counter()
        if job.library == OURS:
            run.trainer.fit(run.module, data.validation)
            seconds, sae = time.perf_counter() - started, load_sae(folder)
        else:
            d_sae, steps = run.module.sae.dictionary.d_sae, max(1, round(share * job.steps))
            penalty = value if job.is_searched else peers.TOLD_WEIGHT
            sae, seconds = peers.train(
                job.library, with_form(job.model, job.form), run.data, d_sae, job.l0, penalty, job.lr or 0.0, job.seed, steps, folder
            )
        validation = build_evaluations(cfg)["reconstruction"](sae, data.validation)
        return Trained(sae, data, validation, seconds), validation["l0"]
