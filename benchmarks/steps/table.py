"""The table of benchmarks/train_step.py: kept as figures in results/train_step.json, shown in README.md and LOG.md."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.steps.first import FIRST

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "train_step.json"
SHOWN_IN = ("README.md", "LOG.md")
BEGIN, END = "<!-- train_step: written by `make bench-peers` -->", "<!-- /train_step -->"
TITLES = {
    "ours": "ours", "sae_lens": "SAELens", "sae_lens, sparse": "SAELens, sparse mode", "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify", "overcomplete": "overcomplete",
}  # fmt: skip
OWN = {"first": "ours, the first 2000 steps", "memory": "ours, peak memory"}
"""Further figures of our own side. Memory is in units of parameters, gradients, Adam's state and one [batch, F] matrix."""


def keep(rows: list[dict[str, Any]], versions: dict[str, str], threads: int, steps: int) -> None:
    """Puts figures in the place of those of the same work, architecture and side; others stay."""
    about = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": threads,
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "steps": steps,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    rounded = [{key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    before = kept() if RESULTS.exists() else {"versions": {}, "rows": []}
    merged = {_key(row): row for row in before["rows"]}
    for row in rounded:
        merged[_key(row)] = merged.get(_key(row), {}) | row
    figures = {"about": about, "versions": before["versions"] | versions, "rows": [merged[key] for key in sorted(merged)]}
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["name"], row["work"], row["side"]


def markdown(kept: dict[str, Any]) -> str:
    """A line for each architecture, a column for each library; `A / B` in a cell, works that were not measured left out."""
    cells = {(row["name"], row["side"], row["work"]): row for row in kept["rows"]}
    names, works = sorted({row["name"] for row in kept["rows"]}), sorted({row["work"] for row in kept["rows"]})
    sides = [side for side in TITLES if any(row["side"] == side for row in kept["rows"])]

    def cell(name: str, side: str, figure: str = "cpu") -> str:
        found = [cells.get((name, side, work), {}).get(figure) for work in works]
        return " / ".join("–" if value is None else f"{value:.2f}" for value in found) if any(found) else "–"

    about, versions = kept["about"], kept["versions"]
    titles = [TITLES[side] + (f" {versions[side]}" if side in versions else "") for side in sides]
    own = {figure: title for figure, title in OWN.items() if any(figure in row for row in kept["rows"])}
    lines = [
        f"| CPU time of a step, {' / '.join(works)} | {' | '.join([*titles, *own.values()])} |",
        "|---" * (len(sides) + len(own) + 1) + "|",
    ]
    lines += [
        f"| {name} | {' | '.join([*(cell(name, side) for side in sides), *(cell(name, 'ours', figure) for figure in own)])} |"
        for name in names
    ]
    fewer = [f"{row['name']} {row['work']} {row['first_steps']}" for row in kept["rows"] if row.get("first_steps", FIRST) < FIRST]
    return "\n".join(lines) + "\n\n" + (
        f"In units of the dense floor; medians of {about['steps']} steps, sides taking turns, {about['threads']} of {about['cores']} cores "
        f"({about['cpu']}), torch {about['torch']}, Python {about['python']}; each library's own trainer."
        + (f" Of the first {FIRST} steps: {', '.join(fewer)}." if fewer else "") + "\n"
    )  # fmt: skip


def kept() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())


def between(text: str) -> str:
    """What stands between the marks."""
    return text.split(BEGIN + "\n", 1)[1].split(END, 1)[0]


def update() -> None:
    """Puts the table of the kept figures between the marks."""
    for name in SHOWN_IN:
        path = ROOT / name
        text = path.read_text()
        path.write_text(text.replace(BEGIN + "\n" + between(text) + END, BEGIN + "\n" + markdown(kept()) + END))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
