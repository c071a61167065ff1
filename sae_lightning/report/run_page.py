"""The page of a run: one html file that opens from disk, with curves, scores, plots and a browser of its features."""

import base64
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.scores import Scores
from sae_lightning.evaluation.units import unit
from sae_lightning.files import write_text
from sae_lightning.inference import InferenceSAE
from sae_lightning.report import curves, features
from sae_lightning.report.page import PER_CHUNK, packed, rendered, without_folders
from sae_lightning.report.pictures import pictures
from sae_lightning.report.table import HEADLINES, number


class Panel(NamedTuple):
    """Curves that are drawn together: names that fit `curves`, of which those that fit `shown` are visible at first."""

    title: str
    curves: str
    shown: str


PANELS = (
    Panel("loss terms", r"(train/|val/)?loss(/.*)?", r"train/loss|val/loss|loss/.*"),
    Panel("L0 and sparsity", r"(train|val)/(l0|l1|explained_variance)|[a-z_]+/(dual|running_l0|tau|penalty_weight|l0_gap|violation)",
          r"(train|val)/l0|.*/running_l0"),
    Panel("dead latents and density", r"(train|val)/(dead|dead_pct|alive)|sparsity/.*", r"(train|val)/dead_pct"),
    Panel("gradients and latents", r"gradients/(norm|norm_clipped|max|std)|parameters/norm|(train|val)/(latents_.*|mean_magnitude)|.*/threshold_mean",
          r"gradients/norm|train/latents_norm|parameters/norm"),
    Panel("speed and hardware", r"time/.*|hardware/.*", r"time/(step_ms|data_wait_pct)|hardware/(cpu_pct|gpu_utilisation_pct)"),
)  # fmt: skip


class Page:
    """Writes report.html into the folder of a run: `latents` features at most, by the first `rows` held-out rows.

    Errors: InputError for numbers that are not positive.
    """

    def __init__(self, rows: int = 65_536, latents: int = 25_000):
        if rows < 1 or latents < 1:
            raise InputError(f"report: rows={rows} and latents={latents} must be positive")
        self.rows, self.latents = rows, latents

    def __call__(self, sae: InferenceSAE, data: RowsDataModule, scores: Scores, run: Path, folder: Path) -> Path:
        """`run`: where the curves and the configuration are; `folder`: where the page goes, and the pictures are. Returns its path."""
        found, chunks, thumbnails = self._features(sae, data)
        drawn = panels(curves.read(run / "metrics.csv"))
        told = {"panels": drawn, "features": found}
        rows = list(scores)
        page = rendered(
            "run.html", shown=told, title=f"{run.resolve().parent.name} · {run.resolve().name}", lead=_lead(sae, data),
            configuration=_configuration(run), panels=drawn, rows=[row.replace("_", " ") for row in rows], nulls=len(rows) > 1,
            scores=list(_lines(scores)), pictures=list(_pictures(run, folder)), features=found, features_about=self._about(found, sae), chunks=chunks,
            thumbnails=thumbnails,
        )  # fmt: skip
        write_text(folder / "report.html", page)
        return folder / "report.html"

    def _about(self, found: Mapping[str, Any] | None, sae: InferenceSAE) -> str:
        if found is None:
            return ""
        few = "" if found["n"] == found["living"] else f", {found['n']} of them drawn at random"
        return f"{found['living']} of {sae.d_sae} latents are active in {found['rows']} held-out rows{few}."

    def _features(self, sae: InferenceSAE, data: RowsDataModule) -> tuple[dict[str, Any] | None, list[str], list[str]]:
        """What the page's script reads, the contexts, by chunks, and the images that these are of, where they are of some."""
        active = features.active(sae, data, self.rows)
        count = np.diff(active.starts)
        latents = features.shown(count, self.latents)
        if not len(latents):
            return None, [], []
        largest, total = np.zeros(len(count), np.float32), np.bincount(active.latent, active.value, len(count))
        np.maximum.at(largest, active.latent, active.value)
        ids = torch.from_numpy(latents)
        near, cosines = features.neighbours(sae, ids)
        made: dict[str, Any] = {
            "n": len(latents), "living": int((count > 0).sum()), "rows": active.rows, "bins": features.BINS, "n_near": near.shape[1],
            "latents": packed(latents, "<u4"), "density": packed(count[latents] / active.rows, "<f4"),
            "mean": packed((total / np.maximum(count, 1))[latents], "<f4"), "max": packed(largest[latents], "<f4"),
            "histogram": packed(features.histograms(active, largest)[latents], "<u4"), "near": packed(near, "<u4"),
            "cosines": packed(cosines, "<f4"), "tokens": [], "n_peaks": 0, "peaks": None, "promoted": None, "starts": None, "n_tokens": 0,
            "pictures": None,
        }  # fmt: skip
        seen = pictures(data, active, latents, largest)
        if seen is not None:
            return made | {"pictures": seen.told}, seen.chunks, seen.thumbnails
        return *self._tokens(made, sae, data, active, latents, largest), []

    def _tokens(self, made: dict[str, Any], sae: InferenceSAE, data: RowsDataModule, active: features.Active, latents: np.ndarray,
                largest: np.ndarray) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
        """With what has to do with a text, where there is one. Tokens are numbered anew: those of the page, in one list."""
        where = features.places(data, active.rows)
        if where is None or data.transformer is None:
            return made, []
        texts = features.contexts(active, where, latents)
        effects = features.effects(sae, data.transformer.load(sae.b_enc.device), torch.from_numpy(latents))
        peaks = features.peaks(texts)
        used = [texts.ids, peaks] + ([] if effects is None else [effects.promoted, effects.suppressed])
        known = np.unique(np.concatenate([part.ravel() for part in used]))
        known = known[known >= 0]

        def own(ids: np.ndarray, missing: int) -> np.ndarray:
            return np.where(ids < 0, missing, np.searchsorted(known, ids))

        kind, none = ("<u2", 0xFFFF) if len(known) < 0xFFFF else ("<u4", 0xFFFFFFFF)
        made |= {
            "tokens": words(data.transformer.tokenizer(), known.tolist()), "n_peaks": peaks.shape[1], "peaks": packed(own(peaks, -1), "<i4"),
            "before": features.BEFORE, "after": features.AFTER, "per_chunk": PER_CHUNK, "none": none,
            "chunk": [kind[1:], "u1", "u1", "f4", "u4", "u2"], "starts": packed(texts.starts, "<u4"),
        }  # fmt: skip
        if effects is not None:
            made |= {"n_tokens": effects.up.shape[1], "promoted": packed(own(effects.promoted, none), "<u4"), "up": packed(effects.up, "<f4"),
                     "suppressed": packed(own(effects.suppressed, none), "<u4"), "down": packed(effects.down, "<f4")}  # fmt: skip
        owner = np.repeat(latents, np.diff(texts.starts))
        shade = np.ceil(255 * texts.active / largest[owner][:, None]).clip(0, 255)
        kept = own(texts.ids, none), shade, texts.kind, texts.value, texts.sequence, texts.position
        bounds = [int(texts.starts[min(i, len(latents))]) for i in range(0, len(latents) + PER_CHUNK, PER_CHUNK)]
        chunks = [
            " ".join(packed(part[start:stop], f"<{of}")[1] for part, of in zip(kept, made["chunk"], strict=True))
            for start, stop in itertools.pairwise(bounds)
        ]
        return made, chunks


def words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Tokens as they stand in a text, with the space before them."""
    made = []
    for i, raw in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        text = tokenizer.decode([i], clean_up_tokenization_spaces=False)
        if isinstance(raw, str) and raw[:1] in ("Ġ", "▁"):
            text = " " + text.removeprefix(raw[0]).removeprefix(" ")
        made.append(text)
    return made


def panels(found: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Of each of `PANELS` the curves that a run logged, thinned."""
    made = []
    for panel in PANELS:
        names = sorted(name for name in found if re.fullmatch(panel.curves, name))
        drawn = [{"name": name, **curves.thinned(found[name]), "shown": bool(re.fullmatch(panel.shown, name))} for name in names]
        made.append({"title": panel.title, "curves": drawn})
    return [panel for panel in made if panel["curves"]]


def _lines(scores: Scores) -> Iterator[dict[str, Any]]:
    """Headlines first, then all others."""
    names = list(dict.fromkeys(name for named in scores.values() for name in named))
    for name in [*(name for name in HEADLINES if name in names), *(name for name in names if name not in HEADLINES)]:
        shown = [number(named.get(name)) for named in scores.values()]
        yield {"name": name, "values_": shown, "unit": unit(name) or "", "headline": name in HEADLINES}


def _pictures(run: Path, folder: Path) -> Iterator[dict[str, str]]:
    for path in [*sorted(folder.glob("*.png")), *sorted((run / "plots").glob("*.png"))]:
        yield {"name": path.stem.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()}


def _lead(sae: InferenceSAE, data: RowsDataModule) -> str:
    known = [str(sae.about.get("architecture", "SAE")), f"{sae.d_sae} latents on rows of width {sae.W_enc.shape[1]}"]
    if data.network is not None:
        known.append(f"{data.network.name} at {', '.join(dict.fromkeys((*data.hooks.x, *data.hooks.y)))}")
    if "rows" in sae.about:
        known.append(f"trained on {sae.about['rows']:,} rows")
    return " · ".join(known)


def _configuration(run: Path) -> str:
    """As it was composed, without what is Hydra's, and without the folders of this machine."""
    path = run / ".hydra" / "config.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return without_folders(text)
