"""A test of names: contexts of some latents in two halves, one to name them by, one to score the names on.

    python -m sae_lightning.report.features write outputs/…          # → outputs/…/naming/
    python -m sae_lightning.report.features score outputs/…/naming

`write` draws latents at random and leaves contexts.md (to be read), names.csv (to be filled in: what the latent stands for), marks.csv (to be
filled in: 1 where the name fits the token between » and «, 0 where it does not) and answers.json. The contexts of the two halves are of different
sequences; of those to be marked one half are the latent's own, the others are tokens at which it is silent. `score` says, of each latent,

    precision = own among those marked 1;   recall = marked 1 among its own;   F1 = their harmonic mean

A name that fits everything has precision ½ and recall 1.
"""

import argparse
import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError, exit_status
from sae_lightning.files import replacing, write_json, write_text
from sae_lightning.inference import InferenceSAE
from sae_lightning.report import features

NAMED_BY, SCORED_ON = 0, 1
FEWEST = 8
"""Activations that a latent must have in each half to be drawn."""


class Marked(NamedTuple):
    """A context to be marked, and whether it is the latent's own."""

    latent: int
    text: str
    is_own: bool


class Score(NamedTuple):
    latent: int
    name: str
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total > 0 else 0.0


def half(found: features.Active, where: features.Places, which: int) -> features.Active:
    """What is active in the sequences of one half: the even ones (0) or the odd ones (1)."""
    kept = where.sequence[found.row] % 2 == which
    counts = np.bincount(found.latent[kept], minlength=len(found.starts) - 1)
    return features.Active(np.concatenate([[0], counts.cumsum()]), found.row[kept], found.value[kept], found.rows)


def draw(halves: Sequence[features.Active], n: int, seed: int) -> Int[np.ndarray, " n"]:
    """Latents with enough activations in both halves, at random. Errors: InputError where there are none."""
    enough = np.logical_and.reduce([np.diff(one.starts) >= FEWEST for one in halves])
    candidates = np.flatnonzero(enough)
    if not len(candidates):
        raise InputError(f"no latent is active {FEWEST} times in each half of the held-out rows: give more of them, rows=…")
    return np.sort(np.random.default_rng(seed).choice(candidates, min(n, len(candidates)), replace=False))


def write(sae: InferenceSAE, data: RowsDataModule, folder: Path, latents: int = 20, rows: int = 65_536, seed: int = 0) -> Path:
    """The four files, into `folder`. Errors: InputError for data without a text, and where names or marks are there already."""
    for file in ("names.csv", "marks.csv"):
        if (folder / file).exists():
            raise InputError(f"{folder / file} is there already, and may hold what somebody wrote: name another folder with --to")
    found = features.active(sae, data, rows)
    where = features.places(data, found.rows)
    if where is None or data.transformer is None:
        raise InputError("these rows come from no text: there are no contexts to name latents by")
    halves = [half(found, where, which) for which in (NAMED_BY, SCORED_ON)]
    drawn = draw(halves, latents, seed)
    tokens = _Tokens(data.transformer.tokenizer())
    read = features.contexts(halves[NAMED_BY], where, drawn)
    marked = list(_marked(halves[SCORED_ON], where, drawn, tokens, seed))
    write_text(folder / "contexts.md", "".join(_contexts(read, drawn, tokens)))
    _write_csv(folder / "names.csv", ["latent", "name"], [[latent, ""] for latent in drawn.tolist()])
    lines = [[number, one.latent, "", one.text] for number, one in enumerate(marked)]
    _write_csv(folder / "marks.csv", ["number", "latent", "fits", "context"], lines)
    write_json(folder / "answers.json", {"latents": drawn.tolist(), "own": [one.is_own for one in marked]})
    return folder


class _Tokens:
    """A context as text, the token that it is about between » and «."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, ids: Int[np.ndarray, " window"]) -> str:
        from sae_lightning.report.run_page import words

        kept = [int(i) for i in ids if i >= 0]
        at = int((ids[: features.BEFORE] >= 0).sum())
        parts = words(self.tokenizer, kept)
        return ("".join(parts[:at]) + "»" + parts[at] + "«" + "".join(parts[at + 1 :])).replace("\n", "⏎")


def _contexts(read: features.Contexts, drawn: Int[np.ndarray, " n"], tokens: _Tokens) -> Iterator[str]:
    yield "# What are these latents for? Write a name for each of them into names.csv\n"
    for i, latent in enumerate(drawn):
        yield f"\n## latent {latent}\n\n"
        for e in range(read.starts[i], read.starts[i + 1]):
            yield f"    {read.value[e]:8.3g}  {tokens(read.ids[e])}\n"


def _marked(own: features.Active, where: features.Places, drawn: Int[np.ndarray, " n"], tokens: _Tokens, seed: int) -> Iterator[Marked]:
    """Of each latent its contexts, and as many tokens of the same half at which it is silent, mixed."""
    chance = np.random.default_rng([seed, 1])
    there = features.contexts(own, where, drawn)
    rows = np.flatnonzero(where.sequence % 2 == SCORED_ON)
    for i, latent in enumerate(drawn):
        entries = range(there.starts[i], there.starts[i + 1])
        active = own.row[own.starts[latent] : own.starts[latent + 1]]
        silent = chance.choice(np.setdiff1d(rows, active), len(entries), replace=False)
        others, _ = features.windows(where, silent)
        made = [Marked(int(latent), tokens(there.ids[e]), True) for e in entries] + [
            Marked(int(latent), tokens(ids), False) for ids in others
        ]
        yield from (made[k] for k in chance.permutation(len(made)))


def score(folder: Path) -> list[Score]:
    """Of each latent that has a name and marks. Errors: InputError for files that are missing, and for marks that are neither 0 nor 1."""
    answers = _answers(folder)
    names = {int(line["latent"]): line["name"].strip() for line in _read_csv(folder / "names.csv", ["latent", "name"])}
    marks: dict[int, list[tuple[bool, bool]]] = {}
    for line in _read_csv(folder / "marks.csv", ["number", "latent", "fits", "context"]):
        fits = line["fits"].strip()
        if fits not in ("0", "1", ""):
            raise InputError(f"{folder / 'marks.csv'}: fits of number {line['number']} is {fits!r}: write 1, 0 or nothing")
        if fits:
            marks.setdefault(int(line["latent"]), []).append((fits == "1", answers[int(line["number"])]))
    found = []
    for latent, given in marks.items():
        if not names.get(latent):
            continue
        said, own = sum(fits for fits, _ in given), sum(is_own for _, is_own in given)
        both = sum(fits and is_own for fits, is_own in given)
        found.append(Score(latent, names[latent], both / said if said else 0.0, both / own if own else math.nan))
    if not found:
        raise InputError(f"{folder} has no latent with a name in names.csv and marks in marks.csv: fill them in")
    return found


def _answers(folder: Path) -> list[bool]:
    try:
        return json.loads((folder / "answers.json").read_text(encoding="utf-8"))["own"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is not what `write` left: answers.json cannot be read") from error


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if not lines or set(columns) - set(lines[0]):
        raise InputError(f"{path} must have the columns {', '.join(columns)}, as `write` left them")
    return lines


def _write_csv(path: Path, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        made = csv.writer(file)
        made.writerow(columns)
        made.writerows(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 for bad input, which is one line on stderr."""
    arguments = _parser().parse_args(argv)
    return exit_status(lambda: arguments.do(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sae_lightning.report.features", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="write | score")
    writing = commands.add_parser("write", help="contexts of a random sample of latents, in two halves")
    writing.add_argument("run", type=Path, metavar="RUN")
    writing.add_argument("--latents", type=int, default=20, metavar="N")
    writing.add_argument("--rows", type=int, default=65_536, metavar="N", help="held-out rows that are looked at")
    writing.add_argument("--seed", type=int, default=0, help="another one: other latents")
    writing.add_argument("--to", type=Path, metavar="FOLDER", help="RUN/naming, if not said")
    writing.set_defaults(do=_write)
    scoring = commands.add_parser("score", help="precision and recall of the names")
    scoring.add_argument("folder", type=Path, metavar="FOLDER")
    scoring.set_defaults(do=_score)
    return parser


def _write(arguments: argparse.Namespace) -> None:
    from sae_lightning.load import load_sae
    from sae_lightning.run.build import build_held_out
    from sae_lightning.run.folder import recorded_config

    data = build_held_out(recorded_config(arguments.run))
    to = arguments.to or arguments.run / "naming"
    made = write(load_sae(arguments.run), data, to, arguments.latents, arguments.rows, arguments.seed)
    print(f"read {made / 'contexts.md'}, fill in {made / 'names.csv'}, then {made / 'marks.csv'}")


def _score(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    found = score(arguments.folder)
    table = Table("latent", "name", "precision", "recall", "F1")
    for one in found:
        table.add_row(str(one.latent), one.name, *(f"{value:.2f}" for value in (one.precision, one.recall, one.f1)))
    table.add_section()
    table.add_row(
        "mean",
        f"{len(found)} latents",
        *(f"{np.nanmean(values):.2f}" for values in zip(*((s.precision, s.recall, s.f1) for s in found), strict=True)),
    )
    Console().print(table)
