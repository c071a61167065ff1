"""What one looks at to understand a latent: where it is active, what it promotes, which other ones are near."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.positions import EVERY
from sae_lightning.evaluation.steps import steps
from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.hooks import forward, unembedding

TOP, QUARTILES, PER_QUARTILE = 10, 4, 2
"""Contexts of a latent: where it is most active, and some from each quarter of its activations (by rank)."""
BEFORE, AFTER = 14, 5
"""Tokens of a context, beside the one that it is about."""
BINS, PEAKS, NEIGHBOURS, TOKENS = 20, 3, 5, 8
ENTRIES = 2**25
"""Products that are held at once."""


class Places(NamedTuple):
    """Held-out sequences, and where the rows stand in them."""

    ids: Int[np.ndarray, "sequences context"]
    row: Int[np.ndarray, "sequences context"]
    """−1 where a position has none."""
    sequence: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]


class Active(NamedTuple):
    """All that is active in the first `rows` held-out rows, latent by latent, of each in the order of the rows.

    Entries of latent j: `starts`[j] to `starts`[j + 1].
    """

    starts: Int[np.ndarray, " d_sae_and_one"]
    row: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]
    rows: int

    @property
    def latent(self) -> Int[np.ndarray, " n"]:
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


class Contexts(NamedTuple):
    """Of latent j: `starts`[j] to `starts`[j + 1]. `kind`: 0 the most active, 1 to 4 the quarters, from the weakest on.

    `ids` are −1 beyond the sequence; `active`: the latent's activations there, 0 where there is no row.
    """

    starts: Int[np.ndarray, " latents_and_one"]
    kind: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]
    sequence: Int[np.ndarray, " n"]
    position: Int[np.ndarray, " n"]
    ids: Int[np.ndarray, "n window"]
    active: Float[np.ndarray, "n window"]


class Effects(NamedTuple):
    """Tokens whose logits a latent raises and lowers most, and by how much for each unit of it."""

    promoted: Int[np.ndarray, "latents n"]
    up: Float[np.ndarray, "latents n"]
    suppressed: Int[np.ndarray, "latents n"]
    down: Float[np.ndarray, "latents n"]


def places(data: RowsDataModule, rows: int) -> Places | None:
    """None for data without tokens."""
    try:
        ids, has_no_row = data.tokens_held_out(EVERY)
    except InputError:
        return None
    return placed(ids.numpy(), (~has_no_row).numpy(), rows)


def placed(ids: Int[np.ndarray, "sequences context"], has_row: Bool[np.ndarray, "sequences context"], rows: int) -> Places:
    """The first `rows` rows, numbered through the sequences, where `has_row` says that a position has one."""
    row = np.where(has_row, np.cumsum(has_row).reshape(has_row.shape) - 1, -1)
    row[row >= rows] = -1
    sequence, position = np.nonzero(row >= 0)
    return Places(ids, row, sequence, position)


def active(sae: InferenceSAE, data: RowsDataModule, rows: int) -> Active:
    """Memory: 12 bytes for each active latent of each of the first `rows` held-out rows."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for batch, step in steps(sae, data, rows):
        row, latent, value = step.latents.active()
        parts.append(((row + done).int().cpu(), latent.int().cpu(), value.float().cpu()))
        done += len(batch.x)
    row, latent, value = (torch.cat(found) for found in zip(*parts, strict=True))
    order = torch.argsort(latent, stable=True)
    starts = torch.bincount(latent, minlength=sae.d_sae).cumsum(0)
    return Active(np.concatenate([[0], starts.numpy()]), row[order].numpy(), value[order].numpy(), done)


def histograms(found: Active, largest: Float[np.ndarray, " d_sae"]) -> Int[np.ndarray, "d_sae bins"]:
    """How many activations of each latent lie in each of `BINS` equal parts of 0 to its largest."""
    latent = found.latent
    bins = np.minimum((BINS * found.value / largest[latent]).astype(np.int64), BINS - 1)
    return np.bincount(latent * BINS + bins, minlength=len(largest) * BINS).reshape(len(largest), BINS)


def chosen(found: Active, latents: Int[np.ndarray, " m"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Of these latents: which entry each context is about, whose it is (its place in `latents`), and its kind.

    The `TOP` largest; then of each quarter of the others, by rank, `PER_QUARTILE` at random, the same ones each time.
    """
    chance = np.random.default_rng(0)
    entries, owners, kinds = [], [], []
    for i, latent in enumerate(latents):
        start, stop = found.starts[latent], found.starts[latent + 1]
        order = start + np.argsort(-found.value[start:stop], kind="stable")
        rest = order[TOP:][::-1]
        parts = [order[:TOP]]
        for quarter in np.array_split(rest, QUARTILES):
            drawn = chance.choice(quarter, min(PER_QUARTILE, len(quarter)), replace=False)
            parts.append(drawn[np.argsort(-found.value[drawn], kind="stable")])
        entries.extend(parts)
        kinds.append(np.repeat(np.arange(1 + QUARTILES), [len(part) for part in parts]))
        owners.append(np.full(sum(map(len, parts)), i))
    return np.concatenate(entries), np.concatenate(owners), np.concatenate(kinds)


def contexts(found: Active, where: Places, latents: Int[np.ndarray, " m"]) -> Contexts:
    """The tokens around the `chosen` entries of these latents, in ascending order, and how active the latent is at each of them."""
    entry, owner, kind = chosen(found, latents)
    row = found.row[entry].astype(np.int64)
    sequence, position = where.sequence[row], where.position[row]
    ids, rows = windows(where, row)
    keys = found.latent.astype(np.int64) * found.rows + found.row
    wanted = latents[owner][:, None] * found.rows + rows
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    values = np.where((rows >= 0) & (keys[place] == wanted), found.value[place], 0)
    starts = np.concatenate([[0], np.bincount(owner, minlength=len(latents)).cumsum()])
    return Contexts(starts, kind, found.value[entry], sequence, position, ids, values)


def windows(where: Places, row: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, "n window"], Int[np.ndarray, "n window"]]:
    """Token ids around the token of each row, and the rows that stand there; −1 where there is none."""
    sequence, at = where.sequence[row][:, None], where.position[row][:, None] + np.arange(-BEFORE, AFTER + 1)
    inside = (at >= 0) & (at < where.ids.shape[1])
    at = at.clip(0, where.ids.shape[1] - 1)
    return np.where(inside, where.ids[sequence, at], -1), np.where(inside, where.row[sequence, at], -1)


def peaks(made: Contexts) -> Int[np.ndarray, "latents n"]:
    """Up to `PEAKS` tokens that the most active contexts of each latent are about, the commonest first; −1 for want of them."""
    found = np.full((len(made.starts) - 1, PEAKS), -1)
    for i, (start, stop) in enumerate(zip(made.starts[:-1], made.starts[1:], strict=True)):
        tokens, first, count = np.unique(made.ids[start:stop, BEFORE][made.kind[start:stop] == 0], return_index=True, return_counts=True)
        best = tokens[np.lexsort([first, -count])][:PEAKS]
        found[i, : len(best)] = best
    return found


def neighbours(sae: InferenceSAE, latents: Int[Tensor, " m"]) -> tuple[Int[np.ndarray, "m n"], Float[np.ndarray, "m n"]]:
    """Of each of these latents the others of them whose decoder rows have the largest cosines with its own, and those."""
    unit = F.normalize(sae.W_dec[latents.to(sae.W_dec.device)].float(), dim=1)
    n = min(NEIGHBOURS, len(unit) - 1)
    ids, cosines = [], []
    block = max(1, ENTRIES // max(len(unit), 1))
    for start in range(0, len(unit), block):
        found = unit[start : start + block] @ unit.T
        rows = torch.arange(len(found), device=unit.device)
        found[rows, rows + start] = -2
        values, places = found.topk(n, dim=1)
        ids.append(latents[places.cpu()])
        cosines.append(values.cpu())
    return torch.cat(ids).numpy(), torch.cat(cosines).numpy()


@torch.no_grad()
def effects(sae: InferenceSAE, model: nn.Module, latents: Int[Tensor, " m"]) -> Effects | None:
    """What the unembedding makes of decoder rows: W_U (γ ⊙ W_dec[j]), less its mean over the vocabulary; γ: the gain of the last norm.

    The direct path alone; None where a decoder row is no direction of the stream that the transformer's last layer reads.
    """
    head = unembedding(model)
    if head is None or head.in_features != sae.W_dec.shape[1]:
        return None
    weight = head.weight.float() * _gain(model, head)
    found: list[list[Tensor]] = []
    for rows in _blocks(sae.W_dec[latents.to(sae.W_dec.device)].to(weight.device), len(weight)):
        logits = rows.float() @ weight.T
        logits -= logits.mean(1, keepdim=True)
        up, promoted = logits.topk(TOKENS, dim=1)
        down, suppressed = logits.topk(TOKENS, dim=1, largest=False)
        found.append([promoted, up, suppressed, down])
    return Effects(*(torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)))


def _gain(model: nn.Module, head: nn.Linear) -> Float[Tensor, " d"]:
    """Of the norm whose output the last layer reads; ones where there is none."""
    outputs: list[tuple[nn.Module, Any]] = []
    read: list[Any] = []
    norms = [
        module for module in model.modules() if getattr(module, "weight", None) is not None and module.weight.shape == head.weight.shape[1:]
    ]  # type: ignore[union-attr]
    handles = [norm.register_forward_hook(lambda module, _, output: outputs.append((module, output))) for norm in norms]
    handles.append(head.register_forward_pre_hook(lambda _, args: read.append(args[0])))
    try:
        forward(model, torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for module, output in outputs:
        if isinstance(output, Tensor) and output.shape == read[0].shape and bool((output == read[0]).all()):
            gain: Tensor = module.weight.float()  # type: ignore[assignment, operator]
            return 1 + gain if type(module).__name__.startswith("Gemma") else gain  # Gemma stores γ − 1
    return torch.ones(head.in_features, device=head.weight.device)


def _blocks(rows: Float[Tensor, "n d"], width: int) -> Iterator[Float[Tensor, "block d"]]:
    return iter(rows.split(max(1, ENTRIES // width)))


def shown(fires: Int[np.ndarray, " d_sae"], most: int) -> Int[np.ndarray, " m"]:
    """The latents that fire; where they are more than `most`, so many of them at random, the same ones each time."""
    latents = np.flatnonzero(fires)
    if len(latents) > most:
        latents = np.sort(np.random.default_rng(0).choice(latents, most, replace=False))
    return latents


if __name__ == "__main__":
    import sys

    from sae_lightning.report.naming import main

    sys.exit(main())
