"""The page of several SAEs: one html file with a table, trade-offs against L0, curves over each other, and latents side by side."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sae_lightning.errors import InputError
from sae_lightning.evaluation.scores import Scores
from sae_lightning.evaluation.units import unit
from sae_lightning.files import write_text
from sae_lightning.inference import described
from sae_lightning.report import curves
from sae_lightning.report.page import rendered, without_folders
from sae_lightning.report.table import HEADLINES, number

HIGHER = {
    "explained_variance", "cosine", "ce_recovered", "ce_recovered_mean", "top1_agreement", "recovery", "recovery_f1", "recovery_mean_cosine",
    "stability_mean_cosine", "stability_above_0.7", "probing_accuracy_1", "probing_accuracy_5",
}  # fmt: skip
LOWER = {
    "normalised_mse", "dead_pct", "above_1e-1", "above_1e-1_share_of_l0", "redundancy_above_0.9", "ce_sae", "delta_ce", "kl", "absorption",
}  # fmt: skip
"""Numbers of which more, and of which less, is better; of the others neither."""
FIRST = (
    "l0", "explained_variance", "kl", "ce_recovered", "dead_pct", "recovery_f1", "stability_mean_cosine", "probing_accuracy_1", "absorption",
)  # fmt: skip
"""Columns that are there before one asks for all."""
FRONTS = {"explained_variance": "explained variance", "kl": "KL", "dead_pct": "dead latents"}
CURVES = {"loss": "loss", "l0": "L0", "explained_variance": "explained variance", "dead_pct": "dead latents, %"}
SAME_L0 = 1.15
"""SAEs whose L0 are not further apart stand for one point of their architecture's line: the best of them."""
CURVES_SHOWN, MANY = 5, 8
"""Of more than `MANY` SAEs the curves of so many are drawn before one asks for others."""
ALL_POINTS, LEAST_POINTS = 6000, 60
"""Of all curves of one panel and kind together; of each at least."""
START = ("seed", "latents", "row width")
"""SAEs that have these alike began with the same directions."""
HUES = (212, 22, 145, 325, 265, 45, 185, 0, 95, 290)
SHADES = ((0, 50), (-14, 68), (12, 36), (8, 60), (-8, 44))
"""Of SAEs of one architecture: how far its hue is turned, and how light."""


class Compared(NamedTuple):
    """An SAE of a comparison: `folder` is where its scores and its page are, `run` the run that trained it.

    `settings`: what it was trained with; `scores`: of itself (row `sae`) and of its null models.
    """

    name: str
    folder: Path
    sae: Path | None
    run: Path | None
    settings: Mapping[str, Any]
    scores: Scores


class Column(NamedTuple):
    name: str
    unit: str
    better: str
    """up, down, or neither."""
    is_more: bool


def write(of: Sequence[Compared], folder: Path, title: str, pairs: Mapping[str, Any] | None = None, objectives: Mapping[str, str] | None = None,
          notes: Sequence[str] = ()) -> Path:  # fmt: skip
    """Writes compare.html into `folder`. Returns its path.

    pairs: of `matches`; objectives: numbers beside the scores that SAEs were chosen by, and whether to minimize or maximize them: where
    there is one alone, the best are the best by it. notes: what a reader must know of the choice of these SAEs.
    """
    objectives = dict(objectives or {})
    facts = [_facts(one) for one in of]
    keys = list(dict.fromkeys(key for known in facts for key in known))
    common = {key: facts[0][key] for key in keys if key in facts[0] and all(known.get(key) == facts[0][key] for known in facts)}
    varied = [key for key in keys if key not in common]
    columns, same = _columns(of, objectives)
    told: dict[str, Any] = {**_told(of, facts, varied, folder, objectives), "pairs": pairs}
    page = rendered(
        "compare.html", shown=told, title=title, notes=list(notes), common=[(key, _text(value)) for key, value in common.items()], same=same,
        varied=varied, columns=columns, saes=list(_lines(told["saes"], of, facts, varied, columns)), pairs=pairs, panels=told["curves"],
        nulls=[(name, [_cell(scores.get(column.name)) for column in columns]) for name, scores in nulls(of)], fronts=told["fronts"],
        is_few=len(of) <= MANY, ranked_by=_ranked_by(objectives)[0].replace("_", " "), pairs_about=_about(pairs, of, objectives),
    )  # fmt: skip
    write_text(folder / "compare.html", page)
    return folder / "compare.html"


def _told(of: Sequence[Compared], facts: Sequence[Mapping[str, Any]], varied: Sequence[str], folder: Path,
          objectives: Mapping[str, str]) -> dict[str, Any]:  # fmt: skip
    """What the script of the page reads, but for the pairs."""
    architectures, order = [str(known.get("model", "SAE")) for known in facts], ranks(of, objectives)
    saes = [
        {"name": one.name, "model": model, "colour": colour, "scores": _of_fronts(one.scores.get("sae", {})), "rank": rank,
         "settings": "  ".join(f"{key} {_text(known[key])}" for key in varied if key in known), "page": _page(one, folder),
         "start": [known.get(key) for key in START]}
        for one, model, colour, rank, known in zip(of, architectures, colours(architectures, order), order, facts, strict=True)
    ]  # fmt: skip
    return {
        "saes": saes,
        "nulls": [{"name": name, "scores": _of_fronts(scores)} for name, scores in nulls(of)],
        "fronts": list(_fronts(of, architectures)),
        "curves": list(_curves(of)),
        "shown": CURVES_SHOWN if len(of) > MANY else len(of),
    }


def _about(pairs: Mapping[str, Any] | None, of: Sequence[Compared], objectives: Mapping[str, str]) -> str:
    if pairs is None or len(pairs["saes"]) == len(of):
        return ""
    which = "the best" if objectives else "the first"
    return f"Of {len(of)} SAEs here are {len(pairs['saes'])}: {which} that were evaluated on the same rows."


def common_folder(folders: Sequence[Path]) -> Path:
    """The deepest one that all of them are in; the first of them where there is none but the root."""
    found = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    return found if found != found.parent else folders[0]


def _facts(one: Compared) -> dict[str, Any]:
    """What the exported SAE says of itself, then what its run was told."""
    try:
        said = {} if one.sae is None else described(one.sae)
    except InputError:
        said = {}
    about = said.get("about", {})
    transformer, hooks = about.get("transformer") or {}, about.get("hooks") or {}
    names = list(dict.fromkeys([*hooks.get("x", []), *hooks.get("y", [])]))
    found = {"model": about.get("architecture"), "latents": said.get("d_sae"), "row width": said.get("d_in"), "transformer": transformer.get("name"),
             "hook point": ", ".join(map(str, names)) or None, "training rows": about.get("rows")}  # fmt: skip
    return dict(one.settings) | {key: value for key, value in found.items() if value is not None} if said else dict(one.settings)


def _columns(of: Sequence[Compared], objectives: Mapping[str, str]) -> tuple[list[Column], list[tuple[str, str, str]]]:
    """Numbers that somebody has; and apart from them, with their units, those that are the same for all."""
    columns, same = [], []
    for name in dict.fromkeys([*objectives, *FIRST, *HEADLINES]):
        values = [one.scores.get("sae", {}).get(name, math.nan) for one in of]
        if all(map(math.isnan, values)):
            continue
        if name not in ("l0", "explained_variance") and len({number(value) for value in values}) == 1:
            same.append((name.replace("_", " "), number(values[0]), "" if unit(name) in (None, name) else str(unit(name))))
            continue
        way = objectives.get(name) or ("maximize" if name in HIGHER else "minimize" if name in LOWER else "")
        better = {"maximize": "up", "minimize": "down"}.get(way, "")
        columns.append(Column(name, unit(name) or "", better, name not in FIRST and name not in objectives))
    return columns, same


def _best(of: Sequence[Compared], columns: Sequence[Column]) -> dict[str, float]:
    """By column; of one in which more is neither better nor worse, nothing."""
    found = {}
    for column in columns:
        values = [value for one in of if math.isfinite(value := one.scores.get("sae", {}).get(column.name, math.nan))]
        if column.better and len(values) > 1:
            found[column.name] = max(values) if column.better == "up" else min(values)
    return found


def _lines(shown: Sequence[Mapping[str, Any]], of: Sequence[Compared], facts: Sequence[Mapping[str, Any]], varied: Sequence[str],
           columns: Sequence[Column]) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Of the table: each cell as it is read and as it is sorted, and whether it is the best of its column."""
    best = _best(of, columns)
    for told, one, known in zip(shown, of, facts, strict=True):
        scores = one.scores.get("sae", {})
        cells = [(*_cell(scores.get(column.name)), scores.get(column.name) == best.get(column.name, math.nan)) for column in columns]
        yield {**told, "cells": cells, "known": [_setting(known.get(key)) for key in varied]}


def _setting(value: Any) -> tuple[str, Any]:
    """As it is read, and as it is sorted."""
    return _text(value), "" if value is None else value if isinstance(value, int | float) else _text(value)


def _cell(value: float | None) -> tuple[str, Any]:
    """As it is read, and as it is sorted."""
    return number(value), "" if value is None or math.isnan(value) else value


def nulls(of: Sequence[Compared]) -> list[tuple[str, dict[str, float]]]:
    """The null models of all of them, each once: those of SAEs of the same L0 on the same rows are the same."""
    found = {}
    for one in of:
        for row, scores in one.scores.items():
            if row != "sae":
                name = f"{row.replace('_', ' ')}, L0 {number(scores.get('l0'))}"
                found.setdefault((name, number(scores.get("explained_variance"))), scores)
    return sorted(((name, scores) for (name, _), scores in found.items()), key=lambda one: (one[0].split(",")[0], one[1].get("l0", 0)))


def _of_fronts(scores: Mapping[str, float]) -> dict[str, float]:
    """What the plots need."""
    return {name: scores[name] for name in ("l0", *FRONTS) if math.isfinite(scores.get(name, math.nan))}


def _fronts(of: Sequence[Compared], architectures: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name, title in FRONTS.items():
        points = [_of_fronts(one.scores.get("sae", {})) for one in of]
        kept = [i for i, point in enumerate(points) if name in point and point.get("l0", 0) > 0]
        lines = {}
        for model in dict.fromkeys(architectures[i] for i in kept):
            own = {i: (points[i]["l0"], points[i][name]) for i in kept if architectures[i] == model}
            lines[model] = line(own, is_less_better=name in LOWER)
        if kept:
            yield {
                "name": name,
                "title": title,
                "unit": unit(name) or "",
                "points": kept,
                "lines": lines,
                "better": "down" if name in LOWER else "up",
            }


def line(points: Mapping[int, tuple[float, float]], is_less_better: bool) -> list[int]:
    """Of (L0, value) by key: the keys of the best at each L0, from few active latents to many."""
    found, group, began = [], [], 0.0
    for key, (l0, _) in sorted(points.items(), key=lambda one: one[1][0]):
        if group and l0 > SAME_L0 * began:
            found.append(group)
            group = []
        began = began if group else l0
        group.append(key)
    pick = min if is_less_better else max
    return [pick(keys, key=lambda key: points[key][1]) for keys in [*found, group] if keys]


def ranks(of: Sequence[Compared], objectives: Mapping[str, str]) -> list[int]:
    """0 for the best by the objective, where there is one alone, or by explained variance; of SAEs without it the order."""
    name, direction = _ranked_by(objectives)
    values = [one.scores.get("sae", {}).get(name, math.nan) for one in of]
    sign = 1 if direction == "minimize" else -1
    order = sorted(range(len(of)), key=lambda i: (not math.isfinite(values[i]), sign * values[i] if math.isfinite(values[i]) else 0))
    return [order.index(i) for i in range(len(of))]


def _ranked_by(objectives: Mapping[str, str]) -> tuple[str, str]:
    return next(iter(objectives.items())) if len(objectives) == 1 else ("explained_variance", "maximize")


def colours(architectures: Sequence[str], ranks: Sequence[int]) -> list[str]:
    """One for each SAE: a hue for each architecture, lighter and darker for its SAEs; a hue for each SAE where there is one architecture."""
    kinds = list(dict.fromkeys(architectures))
    if len(kinds) in (1, len(architectures)):
        places = range(len(ranks)) if len(ranks) <= len(HUES) else ranks
        return [f"hsl({HUES[place % len(HUES)]}, 68%, 50%)" for place in places]
    made = [""] * len(ranks)
    for kind, hue in zip(kinds, itertools.cycle(HUES)):
        own = sorted((i for i, of in enumerate(architectures) if of == kind), key=lambda i: ranks[i])
        for place, i in enumerate(own):
            turned, light = SHADES[place % len(SHADES)]
            made[i] = f"hsl({(hue + turned) % 360}, 68%, {light}%)"
    return made


def _curves(of: Sequence[Compared]) -> Iterator[dict[str, Any]]:
    """By number: those of training and of validation, each with the place of its SAE."""
    logged = [{} if one.run is None else curves.read(one.run / "metrics.csv") for one in of]
    points = min(curves.POINTS, max(LEAST_POINTS, ALL_POINTS // len(of)))
    for name, title in CURVES.items():
        drawn = [
            {"sae": i, "kind": kind, **curves.thinned(known[f"{kind}/{name}"], points)}
            for i, known in enumerate(logged)
            for kind in ("train", "val")
            if f"{kind}/{name}" in known
        ]
        if drawn:
            yield {"title": title, "curves": drawn}


def _page(one: Compared, folder: Path) -> str | None:
    """Where its own page is, seen from `folder`."""
    path = one.folder / "report.html"
    return quote(os.path.relpath(path.resolve(), folder.resolve())) if path.is_file() else None


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else without_folders(str(value))
