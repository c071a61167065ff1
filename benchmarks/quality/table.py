"""What README.md shows of the quality benchmark: kept as its csv and its picture, written there with `--write`."""

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.plan import OURS, ROOT, is_null, leader, misses
from benchmarks.quality.report import chosen, seeds_in_common
from benchmarks.quality.results import Results, Row

KEPT, PICTURE = ROOT / "benchmarks" / "results" / "quality.csv", ROOT / "docs" / "quality.png"
BEGIN, END = "<!-- quality: written by `python -m benchmarks.quality --write` -->\n", "<!-- /quality -->"


def write(out: Path) -> None:
    """Keeps the csv and the picture in `out`, and puts their table into README.md."""
    KEPT.parent.mkdir(exist_ok=True)
    shutil.copyfile(out / "quality.csv", KEPT)
    shutil.copyfile(out / "quality.png", PICTURE)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.replace(BEGIN + between(text) + END, BEGIN + markdown(Results(KEPT).rows()) + END), encoding="utf-8")


def between(text: str) -> str:
    """What stands between the marks."""
    return text.split(BEGIN, 1)[1].split(END, 1)[0]


def markdown(rows: Sequence[Row]) -> str:
    """A line for each architecture: explained variance on test rows at each L0; and, at the first one, beside the best other library."""
    best = {(row["rows"], row["l0_wanted"], row["model"]): row for row in chosen(rows) if row["library"] == OURS}
    places = sorted({key[:2] for key in best}, key=lambda place: (place[0] == "stories", place[1]))
    models = sorted({key[2] for key in best}, key=lambda model: (is_null(model), model))
    lines = [
        f"| explained variance | {' | '.join(f'{kind}, L0 {l0}' for kind, l0 in places)} | best other library, synthetic, L0 12 |",
        "|---" * (len(places) + 2) + "|",
    ]
    for model in models:
        cells = [_cell(best.get((*place, model))) for place in places]
        lines.append(f"| {model} | {' | '.join(cells)} | {_other([row for row in rows if row['model'] == model])} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    """With its form where that is not the usual one, and its L0 where that was missed."""
    if row is None:
        return "–"
    remarks = [row["form"]] * bool(row["form"]) + [f"L0 {row['l0']:.1f}"] * bool(row["knob"] and misses(row))
    return f"{row['explained_variance']:.3f}" + (f" ({', '.join(remarks)})" if remarks else "")


def _other(rows: Sequence[Row]) -> str:
    """Its mean over seeds, and ours over the same ones."""
    at = [row for row in rows if (row["rows"], row["l0_wanted"]) == ("synthetic", 12)]
    library = leader(at)
    if library is None:
        return "–"
    ours, theirs = seeds_in_common(at, library)
    return f"{library} {statistics.mean(theirs):.4f}, ours {statistics.mean(ours):.4f}" + (f" ({len(ours)} seeds)" if len(ours) > 1 else "")
