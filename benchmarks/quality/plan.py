"""What is trained: every architecture and null model of conf/model, in the order in which a benchmark cut short is missed least."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from benchmarks.quality.peers import FORMS as FORMS_OF_OTHERS
from benchmarks.quality.peers import HAVE, SEARCHED
from benchmarks.quality.search import Known
from sae_lightning.errors import InputError

ROOT = Path(__file__).parents[2]
OURS = "sae_lightning"
KNOBS = ("k", "target_l0", "usage", "sparsity")
"""Parameters that say how sparse an SAE is: the first two in active latents. The last two are searched."""
SCORES = ("explained_variance", "l0", "dead_pct", "recovery", "recovery_f1", "recovery_mean_cosine", "kl", "delta_ce")
"""On test rows. Those that a kind of rows has not stay empty."""
KEY = ("rows", "l0_wanted", "library", "model", "lr", "seed", "steps", "form")
"""Columns of the csv that say which job a line is of: Job.key."""
TOLERANCE = 0.05
"""Relative distance from the wanted L0, on validation rows, within which a searched one is right."""
COMPARED_TOLERANCE = 0.025
"""The same where libraries are compared: on the way to a lower L0 a penalty costs relu 0.05 of explained variance in one active latent."""
PAIRED = ("topk", "batch_topk", "matryoshka", "jumprelu")
"""Architectures that other libraries have too: trained with every seed."""
PENALISED = ("relu", "gated", "p_anneal")
"""So are these, which take a search, where those libraries are asked for."""
FORMS: Mapping[str, Mapping[str, str]] = {"relu": {"unit norm": "model.unit_norm=true"}}
"""Of ours, beside the one that conf/model has: what a command says for it. A form is chosen as a learning rate is."""


class Settings(NamedTuple):
    """What a benchmark was asked for. `l0`: by kind of rows, the one on which learning rates are tuned first."""

    out: Path
    models: tuple[str, ...]
    l0: Mapping[str, tuple[int, ...]]
    steps: Mapping[str, int]
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: int = 1
    stories: tuple[Path, Path] | None = None
    words: tuple[str, ...] = ()
    peers: bool = False
    write: bool = False

    def libraries(self, model: str) -> list[str]:
        """Other libraries that train this architecture too, if they were asked for."""
        return [library for library, models in HAVE.items() if self.peers and model in models]

    def of_rows(self, rows: str) -> list[str]:
        """The words of a command that say what is trained on."""
        if rows == "synthetic":
            return ["experiment=reference_rows", "data.rows_held_out=32768", *self.words]
        assert self.stories is not None
        transformer, text = (str(path.absolute()).replace("'", "\\'") for path in self.stories)
        chosen = ["data=text", "data/transformer=stories15m", f"data.transformer.name='{transformer}'", f"data.text.paths=['{text}']"]
        size = ["dictionary.expansion_factor=4", "evaluate.downstream.max_tokens=4096", f"paths.stores='{self.out.absolute()}/stores'"]
        return [*chosen, *size, *self.words]


class Job(NamedTuple):
    """One line of the csv. `lr`: None takes the best of the jobs in `needs`, by validation rows, and its form; 0 for what has none."""

    rows: str
    l0: int
    library: str
    model: str
    lr: float | None
    seed: int
    steps: int
    form: str = ""
    needs: tuple["Job", ...] = ()
    known: Known = Known()
    """Of the weight of the penalty, from the jobs in `needs`."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it this job and no other: the values of KEY."""
        return self[:8]

    @property
    def is_searched(self) -> bool:
        """Whether its knob is."""
        return self.model in SEARCHED.get(self.library, ()) if self.library != OURS else knob(self.model) in KNOBS[2:]

    def __str__(self) -> str:
        lr = "" if not self.lr else f", lr {self.lr:g}"
        return f"{self.rows} L0 {self.l0}: {with_form(self.model, self.form)} of {self.library}{lr}, seed {self.seed}"


def forms(library: str, model: str) -> list[str]:
    """Those of an architecture that are compared within a library; "" is the usual one."""
    return ["", *(FORMS.get(model, ()) if library == OURS else FORMS_OF_OTHERS.get((library, model), ()))]


def with_form(model: str, form: str) -> str:
    """An architecture as tables call it."""
    return f"{model}, {form}" if form else model


def architectures() -> list[str]:
    """Every file in conf/model."""
    return sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


def settings_of(model: str) -> Any:
    """What the file of an architecture holds. Errors: InputError where there is none."""
    path = ROOT / "conf" / "model" / f"{model}.yaml"
    if not path.is_file():
        raise InputError(f"there is no architecture {model!r}: choose among {', '.join(architectures())}")
    return OmegaConf.load(path)


def is_null(model: str) -> bool:
    """Whether there is nothing to train."""
    return str(settings_of(model)._target_).startswith("sae_lightning.models.null.")


def knob(model: str) -> str | None:
    """Which of KNOBS an architecture has; None for one whose L0 is what it is."""
    has = settings_of(model)
    return next((name for name in KNOBS if has.get(name) is not None), None)


def weight(knob: str, value: float) -> float:
    """What L0 falls with: the weight of a penalty as it is, a usage the other way round. The way back, too."""
    return 1 / value if knob == "usage" else value


def plan(settings: Settings) -> list[Job]:
    """Every job, the most telling ones first: the first L0 of each kind of rows, then other seeds, then the other L0s."""
    kinds = ["synthetic"] if settings.stories is None else ["synthetic", "stories"]
    first = {kind: list(_tuned(settings, kind)) for kind in kinds}
    theirs = {kind: list(_tuned_of_others(settings, kind)) for kind in kinds}
    jobs = [job for kind in kinds for job in first[kind]]
    jobs += [job for job in theirs["synthetic"] if job.model in PAIRED]
    jobs += _seeds(settings, PAIRED, first["synthetic"], theirs["synthetic"])
    for kind in kinds:
        before = {model: tuple(job for job in first[kind] if job.model == model) for model in settings.models}
        for l0 in settings.l0[kind][1:]:
            for model in settings.models:
                job = Job(kind, l0, OURS, model, 0.0 if is_null(model) else None, 0, settings.steps[kind], needs=before[model])
                jobs.append(job)
                before[model] = (*before[model], job)
    jobs += [job for job in theirs["synthetic"] if job.model not in PAIRED]
    jobs += _seeds(settings, PENALISED if settings.peers else (), first["synthetic"], theirs["synthetic"])
    return jobs + theirs.get("stories", [])


def _seeds(settings: Settings, models: Sequence[str], first: Sequence[Job], theirs: Sequence[Job]) -> Iterator[Job]:
    """Seed by seed, so that a benchmark cut short has compared every architecture over as many."""
    l0, steps = settings.l0["synthetic"][0], settings.steps["synthetic"]
    for seed, model in itertools.product(range(1, settings.seeds), models):
        for library in (OURS, *settings.libraries(model)) if model in settings.models else ():
            needs = (job for job in (first if library == OURS else theirs) if job.model == model)
            yield Job("synthetic", l0, library, model, None, seed, steps, needs=tuple(needs))


def _tuned(settings: Settings, rows: str) -> Iterator[Job]:
    for model in settings.models:
        job = Job(rows, settings.l0[rows][0], OURS, model, None, 0, settings.steps[rows])
        yield from _grid(job, (0.0,) if is_null(model) else settings.learning_rates)


def _tuned_of_others(settings: Settings, rows: str) -> Iterator[Job]:
    for model in settings.models:
        for library in settings.libraries(model):
            yield from _grid(Job(rows, settings.l0[rows][0], library, model, None, 0, settings.steps[rows]), settings.learning_rates)


def _grid(job: Job, learning_rates: Sequence[float]) -> Iterator[Job]:
    """Every form at every learning rate. A weight that is searched for one rate is where the search for the next one begins."""
    for form in forms(job.library, job.model):
        before: tuple[Job, ...] = ()
        for lr in learning_rates:
            job = job._replace(lr=lr, form=form, needs=before if job.is_searched else ())
            before = (*before, job)
            yield job


def resolved(job: Job, done: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Job:
    """The job with what its `needs`, which are finished, say: a learning rate, a form, and weights of the penalty with their L0."""
    found = [done[key] for key in _keys(job.needs, done)]
    lr, form = job.lr, job.form
    if lr is None:
        tuned = [row for row in found if row["l0_wanted"] == job.needs[0].l0 and row["library"] == job.library]
        if not tuned:
            raise InputError(f"{job}: no learning rate was tuned for it, since the jobs that do so failed")
        lr, form = (best(tuned)[name] for name in ("lr", "form"))
    searched = [row for row in found if row["knob"] in KNOBS[2:] and (row["library"], row["form"]) == (job.library, form)]
    same = [row for row in searched if row["lr"] == lr and row["seed"] == job.seed]
    searched = same or [row for row in searched if row["lr"] == lr] or searched
    steepness = searched[-1]["knob_slope"] if searched else math.nan
    known = Known(tuple((weight(row["knob"], row["knob_value"]), row["l0_validation"]) for row in searched), steepness, bool(same))
    return job._replace(lr=lr, form=form, known=known, needs=())


def leads(job: Job, done: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> bool:
    """Whether a job that waited for those of several libraries is of the best one: the others' further seeds compare nothing."""
    return len({need.library for need in job.needs}) < 2 or leader([done[key] for key in _keys(job.needs, done)]) == job.library


def leader(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The other library that is best with its first seed; None where there is none."""
    others = [row for row in rows if row["library"] != OURS and row["seed"] == 0]
    return best(others)["library"] if others else None


def _keys(jobs: Sequence[Job], done: Mapping[tuple[Any, ...], Any]) -> list[tuple[Any, ...]]:
    """Of the finished ones among `jobs`; one without a learning rate stands for that, and the form, which it got."""
    given = {job._replace(lr=row["lr"], form=row["form"]).key for job in jobs if job.lr is None for row in done.values()}
    return [key for key in done if key in given or any(key == job.key for job in jobs)]


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """That with the most explained variance on VALIDATION rows, among those whose L0 there is right, or among all if none's is."""
    right = [row for row in rows if not misses(row)]
    return max(right or rows, key=lambda row: -math.inf if math.isnan(v := row["explained_variance_validation"]) else v)


def tolerance(job: Job, settings: Settings) -> float:
    """How near a search has to come."""
    is_compared = job.rows == "synthetic" and job.model in PENALISED and job.l0 == settings.l0[job.rows][0]
    return COMPARED_TOLERANCE if is_compared else TOLERANCE


def misses(row: Mapping[str, Any]) -> bool:
    """Whether its L0 on validation rows is not the one that was asked for, within TOLERANCE."""
    return abs(row["l0_validation"] / row["l0_wanted"] - 1) > TOLERANCE
