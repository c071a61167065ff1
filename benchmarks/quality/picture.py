"""What each architecture reaches, over L0."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from benchmarks.quality.plan import OURS, is_null
from benchmarks.quality.results import Row
from sae_lightning.report.plots import write

PANELS = (
    ("synthetic", "explained_variance", "unexplained variance"),
    ("synthetic", "recovery_f1", "F1 of the true directions"),
    ("stories", "explained_variance", "unexplained variance"),
    ("stories", "kl", "KL(clean ‖ spliced), nats"),
)
OTHERS = {"sae_lens": "s", "dictionary_learning": "^", "sparsify": "D", "overcomplete": "v"}
"""Markers of other libraries, in the colour of the architecture."""
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def draw(rows: Sequence[Row], path: Path) -> None:
    """A PNG: a panel for each kind of rows and score that is there; the best learning rate of each, null models dashed.

    What is not explained is drawn on a logarithmic axis: what tells good ones apart is the last tenth.
    """
    panels = [panel for panel in PANELS if any(row["rows"] == panel[0] and not math.isnan(row[panel[1]]) for row in rows)]
    if not panels:
        return
    figure = Figure(figsize=(6.5 * min(len(panels), 2) + 2, 4.6 * math.ceil(len(panels) / 2)), layout="constrained")
    axes = figure.subplots(math.ceil(len(panels) / 2), min(len(panels), 2), squeeze=False).flat
    models = sorted({row["model"] for row in rows if row["library"] == OURS}, key=lambda model: (is_null(model), model))
    for (kind, score, title), place in zip(panels, axes, strict=False):
        here = [row for row in rows if row["rows"] == kind]
        for i, model in enumerate(models):
            _line(place, [row for row in here if row["model"] == model], score, i)
        place.set(title=f"{kind} rows", xlabel="L0 on test rows", ylabel=title, xscale="log")
        place.set_yscale("linear" if score == "recovery_f1" else "log")
        if score != "recovery_f1":
            place.yaxis.set_major_formatter(PLAIN)
            place.yaxis.set_minor_formatter(PLAIN)
        place.set_xticks(sorted({row["l0_wanted"] for row in here}))
        place.xaxis.set_major_formatter(ScalarFormatter())
        place.xaxis.set_minor_formatter(NullFormatter())
        place.grid(alpha=0.3, which="both")
    names = [Line2D([], [], **_style(i, model), label=model) for i, model in enumerate(models)]
    libraries = [name for name in OTHERS if any(row["library"] == name for row in rows)]
    names += [Line2D([], [], color="grey", marker=OTHERS[name], linestyle="", markerfacecolor="none", label=name) for name in libraries]
    figure.legend(handles=names, loc="outside right center", fontsize="small")
    write(figure, path)


def _line(axes: Axes, rows: Sequence[Row], score: str, i: int) -> None:
    """Ours as a line, others as points; without those that have less than half of the wanted L0, or more than twice as much."""
    rows = [row for row in rows if row["l0_wanted"] / 2 < row["l0"] < 2 * row["l0_wanted"]]
    for library in (OURS, *OTHERS):
        points = sorted((row["l0"], _value(row, score)) for row in rows if row["library"] == library)
        points = [(x, y) for x, y in points if not math.isnan(y)]
        style = _style(i, rows[0]["model"]) if rows else {}
        if library != OURS:
            style |= {"marker": OTHERS[library], "linestyle": "", "markerfacecolor": "none"}
        axes.plot([x for x, _ in points], [y for _, y in points], **style)


def _value(row: Row, score: str) -> float:
    return 1 - row[score] if score == "explained_variance" else row[score]


def _style(i: int, model: str) -> dict[str, Any]:
    return {"linestyle": ":" if is_null(model) else "-" if i < 10 else "--", "marker": "o", "color": f"C{i % 10}", "markersize": 4}
