"""What each architecture reaches, over L0."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.plan import OURS, is_null
from benchmarks.quality.results import Row
from sae_lightning.report.plots import write

PANELS = (
    ("synthetic", "explained_variance", "explained variance"),
    ("synthetic", "recovery_f1", "F1 of the true directions"),
    ("stories", "explained_variance", "explained variance"),
    ("stories", "kl", "KL(clean ‖ spliced), nats"),
)
MARKERS = "osD^v<>Pphd"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A PNG: a panel for each kind of rows and score that is there; the best learning rate of each, null models dashed."""
    panels = [panel for panel in PANELS if any(row["rows"] == panel[0] and not math.isnan(row[panel[1]]) for row in rows)]
    if not panels:
        return
    figure = Figure(figsize=(6.5 * min(len(panels), 2) + 2, 4.6 * math.ceil(len(panels) / 2)), layout="constrained")
    axes = figure.subplots(math.ceil(len(panels) / 2), min(len(panels), 2), squeeze=False).flat
    labels = {}
    names = sorted({(row["library"] != OURS, row["library"], row["model"]) for row in rows})
    for (kind, score, title), place in zip(panels, axes, strict=False):
        for i, (_, library, model) in enumerate(names):
            line = _line(place, [row for row in rows if (row["rows"], row["library"], row["model"]) == (kind, library, model)], score, i)
            labels.setdefault(model if library == OURS else f"{library} {model}", line)
        place.set(title=f"{kind} rows", xlabel="L0 on test rows", ylabel=title, xscale="log", yscale="log" if score == "kl" else "linear")
        place.grid(alpha=0.3)
    figure.legend(list(labels.values()), list(labels), loc="outside right center", fontsize="small")
    write(figure, path)


def _line(axes: Axes, rows: Sequence[Row], score: str, i: int) -> object:
    points = sorted((row["l0"], row[score]) for row in rows if row["l0"] > 0 and not math.isnan(row[score]))
    null = bool(rows) and rows[0]["library"] == OURS and is_null(rows[0]["model"])
    style = {"linestyle": "--" if null else "-", "marker": MARKERS[i // 10 % len(MARKERS)], "color": f"C{i % 10}", "markersize": 5}
    return axes.plot([x for x, _ in points], [y for _, y in points], **style)[0]
