"""How good every architecture of conf/model is at the same L0, beside null models: one csv, one picture, tables.

    python -m benchmarks.quality                                                   # synthetic rows: known directions
    python -m benchmarks.quality --stories MODEL_FOLDER TEXT_FILE                  # also the rows of a small transformer on stories
    python -m benchmarks.quality --seeds 5                                         # five seeds of what other libraries have too
    python -m benchmarks.quality --seeds 5 --peers                                 # other libraries beside them: needs `make peers`
    python -m benchmarks.quality --models topk,relu --steps 300                    # a look
    python -m benchmarks.quality … --write                                         # its table and picture into README.md

Learning rates are tuned over one grid for each, at the first L0 of each kind of rows, on validation rows; every other L0 and seed takes
the one chosen. Penalties are searched until L0 is within 5 %. Scores are those of the exported SAE on test rows, which choose nothing.
Two processes of one thread each. Started again, it goes on: jobs in the csv are not repeated. The most telling jobs come first.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from filelock import FileLock, Timeout
from rich.console import Console

from benchmarks.quality import peers, table
from benchmarks.quality.picture import draw
from benchmarks.quality.plan import Job, Settings, architectures, plan, settings_of
from benchmarks.quality.report import chosen, costs, paired, tables
from benchmarks.quality.results import Results, Row
from benchmarks.quality.workers import Queue, work_off
from sae_lightning.errors import InputError
from sae_lightning.files import write_text

WORKERS = 2


def read(argv: Sequence[str]) -> Settings:
    """Errors: InputError for an architecture that is not there; argparse's own exit for what it cannot read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/quality"), help="folder of quality.csv and quality.png")
    parser.add_argument("--models", type=_words, help="comma-separated; default: every file in conf/model")
    parser.add_argument("--l0", type=_numbers, default=(12, 8, 24), help="on synthetic rows, the one that is tuned on first")
    parser.add_argument("--steps", type=int, default=3000, help="on synthetic rows")
    parser.add_argument("--stories", type=Path, nargs=2, metavar=("MODEL_FOLDER", "TEXT_FILE"), help="stories15M and its text")
    parser.add_argument("--stories-l0", type=_numbers, default=(32, 16, 64))
    parser.add_argument("--stories-steps", type=int, default=1000)
    parser.add_argument("--lr", type=lambda text: tuple(map(float, _words(text))), default=(1e-3, 3e-3), help="the grid")
    parser.add_argument("--seeds", type=int, default=1, help="of architectures that other libraries have, at the first L0")
    parser.add_argument("--peers", action="store_true", help="other libraries' own trainers on the same rows: needs `make peers`")
    parser.add_argument("--write", action="store_true", help="keep the csv and the picture, and put their table into README.md")
    parser.add_argument("--words", default="", help="more words for every training, as train.py takes them")
    chosen = parser.parse_args(argv)
    if chosen.peers:
        peers.check()
    models = chosen.models or tuple(architectures())
    for model in models:
        settings_of(model)
    l0 = {"synthetic": chosen.l0, "stories": chosen.stories_l0}
    steps = {"synthetic": chosen.steps, "stories": chosen.stories_steps}
    stories = None if chosen.stories is None else (chosen.stories[0], chosen.stories[1])
    return Settings(
        chosen.out, models, l0, steps, chosen.lr, chosen.seeds, stories, tuple(chosen.words.split()), chosen.peers, chosen.write
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, _words(text)))


def run(settings: Settings, context: Any = None, console: Console | None = None) -> int:
    """Does what is missing, writes and prints what there is; the number of jobs that failed."""
    console = console or Console()
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.out / ".lock", timeout=0):
            return _run(settings, context or multiprocessing.get_context("spawn"), console)
    except Timeout:
        raise InputError(f"another benchmark writes into {settings.out}: wait for it, or choose another --out") from None


def _run(settings: Settings, context: Any, console: Console) -> int:
    _check_words(settings)
    shutil.rmtree(settings.out / "runs", ignore_errors=True)
    results = Results(settings.out / "quality.csv")
    jobs, started, failed = plan(settings), time.perf_counter(), []
    if settings.stories is None:
        console.print("stories: skipped, no --stories MODEL_FOLDER TEXT_FILE was given")
    console.print(f"{len(jobs)} jobs, {len(results.done)} lines in {results.path}")

    def report(job: Job, row: Row | None, problem: str) -> None:
        clock = f"{(time.perf_counter() - started) / 60:5.1f} min"
        if row is None:
            failed.append(job)
            console.print(f"{clock}  FAILED {job}: {problem}", markup=False, highlight=False, soft_wrap=True)
            return
        found = f"explained variance {row['explained_variance']:.4f}, L0 {row['l0']:.2f}, {row['seconds_total']:.0f} s"
        console.print(f"{clock}  {job}: {found}", markup=False, highlight=False, soft_wrap=True)

    try:
        work_off(settings, Queue(jobs, results), WORKERS, context, report)
    finally:
        rows = results.rows()
        draw(chosen(rows), settings.out / "quality.png")
        for found in (*tables(rows), paired(rows), costs(rows)):
            if found is not None:
                console.print(found)
        if settings.write:
            table.write(settings.out)
        console.print(f"{(time.perf_counter() - started) / 60:.1f} minutes now; {results.path}, {settings.out / 'quality.png'}")
    return len(failed)


def _check_words(settings: Settings) -> None:
    """Lines of one csv are of one configuration."""
    path, said = settings.out / "words.txt", " ".join(settings.words) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != said:
        raise InputError(f"{settings.out} was begun with --words '{path.read_text(encoding='utf-8').strip()}': choose another --out")
    write_text(path, said)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        failed = run(read(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
