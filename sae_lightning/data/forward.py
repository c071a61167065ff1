"""From a text, or from images, to the rows that are kept."""

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from sae_lightning.data.encoded import DTYPES, Encoded, encode
from sae_lightning.data.images import Images
from sae_lightning.data.manifest import Manifest
from sae_lightning.data.text import Text
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Inputs, Network
from sae_lightning.transformers.hooks import read_inputs


@dataclasses.dataclass
class Rows:
    """Rows of some sequences at every hook point, as they are to be stored, and the norms of what is stored.

    `keep` says which positions of `ids` gave a row; rows stand in the order of sequences and positions.
    """

    ids: Int[Tensor, "batch context"]
    keep: Bool[Tensor, "batch context"]
    rows: dict[str, Encoded]
    norms: dict[str, Float64[Tensor, " n"]]
    special: int
    nonfinite: int

    def select_(self, kept: Bool[Tensor, " n"]) -> None:
        """Drops the rows where `kept` is false."""
        self.keep[self.keep.clone()] = kept
        self.rows = {hook: rows.at(kept) for hook, rows in self.rows.items()}
        self.norms = {hook: norms[kept] for hook, norms in self.norms.items()}


def forward(
    model: nn.Module,
    hooks: list[str],
    inputs: Inputs,
    special: Int[Tensor, " special"],
    dtype: str,
    skip_nonfinite: bool,
    first_sequence: int,
) -> Rows:
    """One forward pass. Ids that are special give no row; nor do rows that are NaN or infinite at any hook point, in `dtype`.

    Errors: InputError for such a row, unless `skip_nonfinite`.
    """
    activations = read_inputs(model, hooks, inputs.ids.shape, inputs.named)
    keep = ~torch.isin(inputs.ids, special)
    raw = {hook: activations[hook][keep] for hook in hooks}
    result = Rows(inputs.ids, keep, {hook: encode(rows, dtype) for hook, rows in raw.items()}, {}, int((~keep).sum()), 0)
    finite = torch.stack([_is_finite(rows) for rows in result.rows.values()])
    if not bool(finite.all()):
        if not skip_nonfinite:
            raise InputError(_first_nonfinite(result, raw, finite, dtype, first_sequence))
        kept = finite.all(0)
        result.nonfinite = int((~kept).sum())
        result.select_(kept)
    result.norms = {hook: torch.linalg.vector_norm(rows.float(), dim=1, dtype=torch.float64) for hook, rows in result.rows.items()}
    return result


def _is_finite(rows: Encoded) -> Bool[Tensor, " n"]:
    """int8 values are always finite; the scale of a row that was not shows it."""
    return rows.values.isfinite().all(1) if rows.scale is None else rows.scale.isfinite()


def _first_nonfinite(result: Rows, raw: dict[str, Tensor], finite: Tensor, dtype: str, first_sequence: int) -> str:
    row = int((~finite.all(0)).nonzero()[0, 0])
    hook = list(raw)[int((~finite[:, row]).nonzero()[0, 0])]
    sequence, position = result.keep.nonzero()[row].tolist()
    where = f"the row at hook point '{hook}', sequence {first_sequence + sequence}, position {position}"
    if bool(raw[hook][row].isfinite().all()):
        return f"{where} is too large for {DTYPES[dtype]}: set data.dtype=bfloat16 or float32, or data.on_nonfinite=skip to leave such rows out"
    return f"{where} has NaN or infinite entries: set data.on_nonfinite=skip to leave such rows out and count them"


class Passes:
    """The rows of a text's sequences, or of images, one forward pass at a time, in any order; cheapest in ascending order.

    The transformer is loaded at once, on `device`; None: on a GPU where there is one.
    """

    def __init__(
        self, transformer: Network, text: Text | Images, manifest: Manifest, seed: int, skip_nonfinite: bool,
        device: torch.device | None = None,
    ):  # fmt: skip
        self.transformer, self.text, self.manifest = transformer, text, manifest
        self.seed, self.skip_nonfinite = seed, skip_nonfinite
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = transformer.load(self.device)
        self.special = torch.tensor(manifest.special_ids, dtype=torch.int64, device=self.device)
        self.vocabulary: int | None = getattr(transformer.config().get_text_config(), "vocab_size", None)
        self._texts: Iterator[Any] = iter(())
        self._next: int | None = None
        self._ahead: dict[int, Rows] = {}

    def median_norms(self, rows: int) -> dict[str, float]:
        """Median norm of the first `rows` rows of the whole text (of all, where there are fewer) by hook point.

        Errors: InputError where the text gives no row at all.
        """
        norms: dict[str, list[Tensor]] = {hook: [] for hook in self.manifest.widths}
        found = start = 0
        share = self.manifest.share
        while found < rows and (batch := self.batch(start)) is not None:
            if share.first <= start < share.stop:
                self._ahead[start] = batch  # is asked for again, by the first shard
            for hook, values in batch.norms.items():
                norms[hook].append(values)
            found, start = found + int(batch.keep.sum()), start + len(batch.ids)
        if not found:
            raise InputError(self.text.without_rows(self.manifest.context_length))
        return {hook: float(torch.cat(values)[:rows].median()) for hook, values in norms.items()}

    def batch(self, start: int) -> Rows | None:
        """The forward pass that begins with sequence `start`; None where the text has ended, or as much as was asked for."""
        if start in self._ahead:
            return self._ahead.pop(start)
        stop = min(start + self.manifest.forward_batch_size, self.manifest.share.of)
        if start != self._next:
            self._texts = iter(self.text.sequences(self.transformer, self.manifest.context_length, start, self.seed))  # type: ignore[arg-type]
        sequences = list(islice(self._texts, stop - start))
        self._next = start + len(sequences)
        if not sequences:
            return None
        inputs = self.transformer.inputs(sequences)
        if self.vocabulary is not None and int(inputs.ids.max()) >= self.vocabulary:
            raise InputError(
                f"the text '{self.text.name}' has token id {int(inputs.ids.max())}, {self.transformer.name} has {self.vocabulary} tokens: "
                "it was tokenised for another transformer"
            )
        hooks, dtype = list(self.manifest.widths), self.manifest.dtype
        return forward(self.model, hooks, inputs.to(self.device), self.special, dtype, self.skip_nonfinite, start)
