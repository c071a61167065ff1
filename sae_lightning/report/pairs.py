"""Latents of two SAEs matched one to one, and what one looks at to see whether they are the same."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.evaluation.recovery import assigned
from sae_lightning.inference import InferenceSAE
from sae_lightning.report import features
from sae_lightning.report.page import packed
from sae_lightning.report.run_page import words

SAES = 4
"""Each of so many is matched with each other one."""
LATENTS = 2048
"""Of the left one of a pair, at most: time grows with their square times the latents of the right one."""
CONTEXTS = 6
"""Of a latent: where it is most active."""
NONE = {"<u2": 0xFFFF, "<u4": 0xFFFFFFFF}
"""No token."""


class Pair(NamedTuple):
    """Latents `left` of SAE `a` with latents `right` of SAE `b`, and the cosines of their decoder rows.

    `together`: of the rows where one of the two is active, the share where both are. `chance`: cosines of as many random directions,
    matched with the same latents of `a`.
    """

    a: int
    b: int
    left: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]
    together: Float[np.ndarray, " n"]
    chance: Float[np.ndarray, " n"]
    living: tuple[int, int]


def matches(saes: Sequence[tuple[int, InferenceSAE]], data: RowsDataModule, rows: int) -> dict[str, Any] | None:
    """For the script of a page: each of these SAEs with each other one, on the first `rows` held-out rows. None for fewer than two.

    saes: of one decoder width, each with its place in the comparison. Living latents alone are matched.
    """
    if len(saes) < 2:
        return None
    found = [features.active(sae, data, rows) for _, sae in saes]
    pairs = [_pair(i, j, saes[i][1], saes[j][1], found[i], found[j]) for i, j in itertools.combinations(range(len(saes)), 2)]
    pairs = [pair for pair in pairs if len(pair.left)]
    if not pairs:
        return None
    made = _sides([place for place, _ in saes], found, pairs, data)
    made["pairs"] = [
        {"a": pair.a, "b": pair.b, "left": packed(pair.left, "<u4"), "right": packed(pair.right, "<u4"), "cosine": packed(pair.cosine, "<f4"),
         "together": packed(pair.together, "<f4"), "chance": packed(pair.chance, "<f4"), "living": list(pair.living)}
        for pair in pairs
    ]  # fmt: skip
    return made


def _pair(a: int, b: int, left: InferenceSAE, right: InferenceSAE, of_left: features.Active, of_right: features.Active) -> Pair:
    living = [np.flatnonzero(np.diff(active.starts)) for active in (of_left, of_right)]
    own, other = features.shown(np.diff(of_left.starts), LATENTS), living[1]
    directions = [sae.W_dec[torch.from_numpy(latents).to(sae.W_dec.device)].cpu() for sae, latents in ((left, own), (right, other))]
    i, j, cosine = (part.numpy() for part in assigned(*directions))
    chance = assigned(directions[0], torch.randn(directions[1].shape, generator=generator(0, "chance")))[2].numpy()
    return Pair(a, b, own[i], other[j], cosine, _together(of_left, of_right, own[i], other[j]), chance, (len(living[0]), len(living[1])))


def _together(left: features.Active, right: features.Active, i: Int[np.ndarray, " n"], j: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """|rows of both| / |rows of either|, of each pair."""
    found = np.zeros(len(i))
    for k, (one, other) in enumerate(zip(i, j, strict=True)):
        rows = left.row[left.starts[one] : left.starts[one + 1]], right.row[right.starts[other] : right.starts[other + 1]]
        both = len(np.intersect1d(*rows, assume_unique=True))
        found[k] = both / (len(rows[0]) + len(rows[1]) - both)
    return found


class Texts(NamedTuple):
    """Of latent k of those that are shown: contexts `starts`[k] to `starts`[k + 1], as in `features.Contexts`."""

    starts: Int[np.ndarray, " latents_and_one"]
    ids: Int[np.ndarray, "n window"]
    active: Float[np.ndarray, "n window"]
    value: Float[np.ndarray, " n"]
    peaks: Int[np.ndarray, "latents peaks"]


def _texts(active: features.Active, where: features.Places, latents: Int[np.ndarray, " m"]) -> Texts:
    made = features.contexts(active, where, latents)
    owner = np.repeat(np.arange(len(latents)), np.diff(made.starts))
    kept = (np.arange(len(owner)) - made.starts[owner] < CONTEXTS) & (made.kind == 0)
    starts = np.concatenate([[0], np.bincount(owner[kept], minlength=len(latents)).cumsum()])
    return Texts(starts, made.ids[kept], made.active[kept], made.value[kept], features.peaks(made))


def _sides(places: Sequence[int], found: Sequence[features.Active], pairs: Sequence[Pair], data: RowsDataModule) -> dict[str, Any]:
    """Of each SAE its latents that are in a pair. Tokens are numbered anew: those of the page, in one list."""
    shown = []
    for i in range(len(places)):
        matched = [pair.left if pair.a == i else pair.right for pair in pairs if i in (pair.a, pair.b)]
        shown.append(np.unique(np.concatenate([*matched, np.zeros(0, np.int64)])).astype(np.int64))
    where = None if data.transformer is None else features.places(data, found[0].rows)
    texts = [None if where is None else _texts(active, where, latents) for active, latents in zip(found, shown, strict=True)]
    used = [part.ravel() for text in texts if text is not None for part in (text.ids, text.peaks)]
    known = np.unique(np.concatenate([*used, np.zeros(0, np.int64)]))
    known = known[known >= 0]
    kind = "<u2" if len(known) < 0xFFFF else "<u4"
    sides = [
        {"sae": place, **_facts(active, latents), **({} if text is None else _shown(text, active, latents, known, kind))}
        for place, active, latents, text in zip(places, found, shown, texts, strict=True)
    ]
    tokens = [] if data.transformer is None or not len(known) else words(data.transformer.tokenizer(), known.tolist())
    return {"rows": found[0].rows, "before": features.BEFORE, "after": features.AFTER, "tokens": tokens, "none": NONE[kind], "saes": sides}


def _facts(active: features.Active, latents: Int[np.ndarray, " m"]) -> dict[str, Any]:
    density = np.diff(active.starts)[latents] / active.rows
    return {
        "latents": packed(latents, "<u4"),
        "density": packed(density, "<f4"),
        "max": packed(_largest(active, latents), "<f4"),
        "starts": None,
    }


def _shown(texts: Texts, active: features.Active, latents: Int[np.ndarray, " m"], known: Int[np.ndarray, " tokens"],
           kind: str) -> dict[str, Any]:  # fmt: skip
    def own(ids: np.ndarray) -> list[str]:
        return packed(np.where(ids < 0, NONE[kind], np.searchsorted(known, ids)), kind)

    shade = np.ceil(255 * texts.active / np.repeat(_largest(active, latents), np.diff(texts.starts))[:, None]).clip(0, 255)
    return {"starts": packed(texts.starts, "<u4"), "ids": own(texts.ids), "active": packed(shade, "<u1"), "value": packed(texts.value, "<f4"),
            "peaks": own(texts.peaks), "n_peaks": texts.peaks.shape[1]}  # fmt: skip


def _largest(active: features.Active, latents: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    return np.maximum.reduceat(active.value, active.starts[latents]) if len(latents) else np.zeros(0, np.float32)
