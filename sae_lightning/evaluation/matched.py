"""Architectures compared at the same L0. Typed in the folder of train.py:

    python -m sae_lightning.evaluation.matched model=topk,jumprelu data=synthetic seeds=5 lr=3e-4,1e-3 l0=8,16,32 [words of train.py]
    python -m sae_lightning.evaluation.matched multirun/A multirun/B [l0=8,16,32]     # grid sweeps that are finished already

For each architecture one grid sweep, `train.py -m hydra/sweeper=grid`, of knob × learning rate × seed; typed again, it goes on where it
stopped. Then tables, and matched.json, matched.csv and matched.png.

    model=…           the architectures; the first one is what the others are compared with
    seeds=5           seed=0,1,2,3,4 (or seed=… as train.py takes it)
    lr=3e-4,1e-3      the grid of optimizer.lr; without it the learning rate of conf/, or of the word optimizer.lr
    l0=8,16,32        where to compare. Of finished sweeps: without it at the values of knobs that are an L0
    knob.relu=…       values of the parameter of relu that says how sparse it is: k, target_l0, usage or sparsity, the first that it has.
                      Without it: where that is an L0, those of l0=, and one value a quarter outside on either side; where it is a
                      penalty, 5 values over the interval of conf/sweep/space
    metric=kl         a number of scores.json, or val/… of the last validation (explained_variance)
    direction=        maximize or minimize, for a metric whose direction is not known here
    to=FOLDER         where the files go (outputs/matched-<6 digits of the words>)

The protocol:
 - A job that is finished is a point (L0, score), on held-out rows. The points of one architecture, learning rate and seed are a curve, by
   their measured L0, whatever the knob. The score at an L0 lies on the straight line in log L0 between the two neighbouring points.
   Nothing is extrapolated: a curve that does not reach the L0 has no score there, which is counted and said.
 - At each L0, an architecture has the learning rate, one for all seeds, with the best mean over seeds of the validation's number at that
   L0 (`val/<metric>`, or `val/explained_variance` for a metric that validations do not have), among those that the most seeds have a
   number for. Validation and scores are of held-out rows both, and mostly of the same ones.
 - Differences from the first architecture are paired: seed by seed, where both have a score. Mean, standard error, two-sided 95 %
   interval of Student's t. Intervals are each by themselves: of twenty of no difference one will leave out 0.
 - The Pareto front of an architecture, learning rate and seed: the jobs that none of them beats at as few active latents, interpolated
   in log L0, and flat from there to the most active latents that were tried. The front of an architecture and seed is, between any two
   neighbouring L0 of its points, that of the learning rate which is best in the middle (of log L0), chosen as above by the fronts of the
   validation's number. An L0 that a learning rate reaches with some of its seeds only is left out: there, rates cannot be compared.
 - Area between two fronts: ∫ (score − baseline's score) d log L0 / (log L0_max − log L0_min) over the range of L0 that the fronts of all
   paired seeds of both have in common; by seed, then mean and interval as above.
 - A job that failed or diverged, and a seed that is missing, are named, and leave their pairs out.
"""

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from sae_lightning.errors import InputError, exit_status
from sae_lightning.evaluation.comparison import IS_L0, KNOBS, Comparison, compare
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer, parsed
from sae_lightning.run.folder import existing, sweep_name
from sae_lightning.run.suggest import did_you_mean
from sae_lightning.signals import PARENT
from sae_lightning.sweeps.results import read as results_of
from sae_lightning.sweeps.space import Interval, dimension

SWEEPER = "hydra/sweeper"
OWN = ("model", "seeds", "lr", "l0", "metric", "direction", "to")
HIGHER = {
    "explained_variance", "explained_variance_legacy", "cosine", "ce_recovered", "ce_recovered_mean", "top1_agreement", "token_accuracy",
    "alive", "recovery", "recovery_precision", "recovery_f1", "recovery_mean_cosine",
}  # fmt: skip
LOWER = {
    "mse", "mse_sum", "normalised_mse", "l1_error", "fvu", "mse_over_norm", "kl", "delta_ce", "ce_sae", "perplexity", "dead", "dead_pct",
    "miracle_distance", "absorption", "redundancy_max_cosine", "redundancy_above_0.9",
}  # fmt: skip
OUTSIDE, PENALTIES, SEEDS = 1.25, 5, 5
"""How far beyond the first and the last L0 a knob is asked for, how many values a penalty has, and how many seeds there are without a word."""
WIDTH = 160
"""Of what is printed where there is no terminal."""


class Request(NamedTuple):
    """A command. `folders`: of finished sweeps, or none; `models`: else, what is trained; `knobs`: by model; `others`: words of train.py."""

    folders: list[Path]
    models: list[str]
    knobs: dict[str, str]
    seeds: int | None
    lr: str | None
    l0: list[float]
    metric: str
    is_less_better: bool
    to: str | None
    others: list[str]


class Sweep(NamedTuple):
    """Of one architecture: the words of its command, and the folder that its jobs are in."""

    model: str
    words: list[str]
    folder: Path
    is_dry_run: bool


def read(argv: Sequence[str]) -> Request:
    """Errors: InputError for words that are wrong by themselves."""
    if flag := next((word for word in argv if word.startswith("-")), None):
        raise InputError(f"there is no flag {flag}: words are key=value, or folders of sweeps")
    folders = [Path(word) for word in argv if not ("=" in word or word.startswith("~")) or Path(word).is_dir()]
    words = [(word.partition("=")[0], word) for word in argv if Path(word) not in folders]
    own = [(key, word.partition("=")[2]) for key, word in words if key in OWN or key.startswith("knob.")]
    said = dict(own)
    if len(said) < len(own):
        raise InputError("a word is there twice: give all values in one, lr=3e-4,1e-3")
    if sweeper := next((word for key, word in words if key == SWEEPER), None):
        raise InputError(f"{sweeper}: architectures are compared over grids, leave this word out")
    others = [word for key, word in words if key not in said]
    if folders and (wrong := next((key for key, _ in words if key not in ("l0", "metric", "direction", "to")), None)):
        raise InputError(f"{wrong}=… belongs to a training: with folders of sweeps there are l0, metric, direction and to")
    models = list(dict.fromkeys(filter(None, said.get("model", "").split(","))))
    if not folders and not models:
        raise InputError("say what to compare: model=topk,jumprelu, or the folders of finished sweeps")
    knobs = {key.removeprefix("knob."): value for key, value in said.items() if key.startswith("knob.")}
    for name in (name for name in knobs if name not in models):
        raise InputError(f"knob.{name}=…: {name} is not compared{did_you_mean(name, models)}")
    l0 = _l0(said["l0"]) if "l0" in said else []
    if not folders and not l0:
        raise InputError("say where to compare: l0=8,16,32")
    metric = said.get("metric", "explained_variance")
    seeds = _seeds(said.get("seeds"), others)
    lr = said.get("lr")
    if lr is not None and any(word.startswith("optimizer.lr=") for word in others):
        raise InputError("lr=… and optimizer.lr=… are the same: leave one of them out")
    return Request(folders, models, knobs, seeds, lr, l0, metric, _is_less(metric, said.get("direction")), said.get("to"), others)


def _l0(text: str) -> list[float]:
    try:
        values = sorted({float(value) for value in text.split(",")})
    except ValueError as error:
        raise InputError(f"l0={text}: give numbers with commas, l0=8,16,32") from error
    if not all(0 < value < math.inf for value in values):
        raise InputError(f"l0={text}: an L0 is more than 0")
    return values


def _seeds(text: str | None, others: Sequence[str]) -> int | None:
    """How many; None where `seed=` says which."""
    is_said = any(word.startswith("seed=") for word in others)
    if text is not None and (is_said or not text.isdecimal() or not int(text)):
        raise InputError(
            "seeds=… and seed=… are both there: leave one out" if is_said else f"seeds={text}: give a number of seeds, seeds=5"
        )
    return None if is_said else int(text or SEEDS)


def _is_less(metric: str, direction: str | None) -> bool:
    bare = metric.removeprefix("val/")
    if direction not in (None, "maximize", "minimize"):
        raise InputError(f"direction={direction}: maximize or minimize")
    if direction is None and bare not in HIGHER | LOWER:
        raise InputError(f"metric={metric}: say whether more of it is better, direction=maximize, or less, direction=minimize")
    return bare in LOWER if direction is None else direction == "minimize"


# -- training -----------------------------------------------------------------------------------------------------------


def plan(request: Request, root: Path) -> list[Sweep]:
    """A sweep for each architecture, its words judged as train.py judges them. Errors: InputError."""
    for name in ("train.py", "conf"):
        if not (root / name).exists():
            raise InputError(f"there is no {name} in {root}: type this in the folder of train.py, or give folders of finished sweeps")
    composer = Composer(root / "conf", "train", words=request.others)
    others = [parsed(word) for word in request.others]
    if "model" in composer.groups and (unknown := next((m for m in request.models if m not in composer.groups["model"]), None)):
        raise InputError(f"model={unknown}: model has no option {unknown!r}{did_you_mean(unknown, composer.groups['model'])}")
    if len(request.models) == 1 and not any(o.is_sweep_override() and o.get_key_element() not in ("seed", "optimizer.lr") for o in others):
        raise InputError(
            f"model={request.models[0]} alone has nothing to be compared with: name several, model={request.models[0]},jumprelu"
        )
    return [_sweep(request, model, composer, others) for model in request.models]


def _sweep(request: Request, model: str, composer: Composer, others: Sequence[Override]) -> Sweep:
    begin = [f"{SWEEPER}=grid", f"model={model}"]
    cfg = validate(composer, [*begin, *request.others], multirun=True)
    knob = next((name for name in KNOBS if cfg.model.get(name) is not None), None)
    if knob is None:
        raise InputError(f"model={model} has none of {', '.join(KNOBS)}: train it by itself, and give the folders of sweeps")
    if any(o.get_key_element() == f"model.{knob}" for o in others):
        raise InputError(f"model.{knob}=… is what is varied: say knob.{model}=…")
    values = request.knobs.get(model) or ",".join(f"{value:.4g}" for value in _grid(request.l0, knob, model, cfg))
    words = [*begin, f"model.{knob}={values}"]
    is_null = str(cfg.model.get("_target_")).startswith("sae_lightning.models.null.")
    if request.lr is not None and not is_null:
        words.append(f"optimizer.lr={request.lr}")
    if request.seeds is not None:
        words.append(f"seed={','.join(map(str, range(request.seeds)))}")
    name = None if cfg.sweep.name is None else f"{cfg.sweep.name}-{model}"
    words += [f"sweep.name={name}" if o.key_or_group == "sweep.name" else str(o.input_line) for o in others]
    validate(composer, words, multirun=True)
    return Sweep(model, words, Path(str(cfg.paths.multirun)) / sweep_name(name, words), bool(cfg.sweep.dry_run))


def _grid(l0: Sequence[float], knob: str, model: str, cfg: DictConfig) -> list[float]:
    """Values of a knob that nobody gave."""
    if knob in IS_L0:
        below, above = math.floor(l0[0] / OUTSIDE), math.ceil(l0[-1] * OUTSIDE)
        return [*([float(below)] if below >= 1 else []), *l0, float(above)]
    word = cfg.sweep.space.get(f"model.{knob}") if cfg.sweep.space else None
    space = None if word is None else dimension(parsed(f"model.{knob}={word}"))
    if not isinstance(space, Interval) or space.low <= 0:
        raise InputError(f"model={model}: say which values its {knob} has, knob.{model}=0.01,0.03,0.1")
    ratio = space.high / space.low
    return [space.low * ratio ** (i / (PENALTIES - 1)) for i in range(PENALTIES)]


def train(sweep: Sweep, root: Path) -> int:
    """What the command of a sweep exits with. It hears signals of the terminal itself, and stops where this process dies."""
    command = [sys.executable, str(root / "train.py"), "-m", *sweep.words]
    print(f"\n{sweep.model}: python train.py -m {' '.join(sweep.words)}", flush=True)
    process = subprocess.Popen(command, cwd=root, env=os.environ | {PARENT: str(os.getpid())})
    is_stopped = False
    while True:
        try:
            code = process.wait()
            return code or (130 if is_stopped else 0)
        except KeyboardInterrupt:
            is_stopped = True


# -- the command --------------------------------------------------------------------------------------------------------


def run(argv: Sequence[str], root: Path) -> int:
    """Exit status: 0; 1 where jobs failed; that of a training that was stopped. Errors: InputError."""
    request = read(argv)
    sweeps = [] if request.folders else plan(request, root)
    name = f"matched-{hashlib.blake2b(chr(10).join(argv).encode(), digest_size=3).hexdigest()}"
    to = Path(request.to) if request.to else root / "outputs" / name
    existing(to)
    failed = False
    for sweep in sweeps:
        code = train(sweep, root)
        if code not in (0, 2):
            print(f"{sweep.model}: stopped with exit code {code}; type the same command again to go on", file=sys.stderr)
            return code if code > 0 else 128 - code
        failed = failed or code == 2
    if any(sweep.is_dry_run for sweep in sweeps):
        return 0
    folders = request.folders or [root / sweep.folder for sweep in sweeps]
    found = compare([results_of(folder) for folder in folders], request.metric, request.is_less_better, request.l0)
    show(found, to, argv, folders)
    return 1 if failed else 0


def show(found: Comparison, to: Path, argv: Sequence[str], folders: Sequence[Path]) -> None:
    """Prints the tables and notes, and writes the files into `to`."""
    from rich.console import Console

    from sae_lightning.report.matched import tables, write

    write(found, to, {"words": list(argv), "sweeps": [str(folder) for folder in folders]})
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in tables(found):
        console.print(table)
    for note in found.notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(*_written(to), sep="\n", markup=False, highlight=False, soft_wrap=True)


def _written(to: Path) -> Iterator[str]:
    yield from (str(to / name) for name in ("matched.json", "matched.csv", "matched.png"))


def main(argv: Sequence[str], root: Path) -> int:
    """Exit status: that of `run`; 2 for bad input, which is one line on stderr."""
    if any(word in ("-h", "--help") for word in argv):
        print(__doc__)
        return 0
    return exit_status(lambda: run(argv, root))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path.cwd()))
