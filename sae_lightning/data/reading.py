"""Rows straight from a transformer that reads a text: those that a harvest would have written."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sae_lightning.data.encoded import Encoded, joined
from sae_lightning.data.forward import Passes, Rows
from sae_lightning.data.harvest import ROWS_FOR_MEDIAN, Harvest
from sae_lightning.data.manifest import Manifest
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer


class Apart(Transformer):
    """A transformer on a device, loaded, with modules of its own on the weights that others who load it get.

    What another thread hooks into the transformer does not reach its forward passes, nor the other way round.
    """

    def __init__(self, transformer: Transformer, device: torch.device):
        super().__init__(dtype=transformer.dtype)
        self.name, self.trust_remote_code = transformer.name, transformer.trust_remote_code
        self.described = transformer
        self.shared = transformer.load(device)  # whoever holds it saves the others the loading
        self.model = with_own_modules(self.shared)

    def identity(self) -> dict[str, Any]:
        return self.described.identity()

    def config(self) -> Any:
        return self.described.config()

    def tokenizer(self) -> Any:
        return self.described.tokenizer()

    def special_ids(self) -> set[int]:
        return self.described.special_ids()

    def max_context(self) -> int | None:
        return self.described.max_context()

    def skeleton(self) -> nn.Module:
        return self.described.skeleton()

    def trained(self) -> Transformer:
        """The one that is loaded, where it is the one that writes."""
        trained = self.described.trained()
        return self if trained.identity() == self.described.identity() else trained

    def load(self, device: str | torch.device = "cpu") -> nn.Module:
        """On the device where it is, whichever is asked for."""
        return self.model


def with_own_modules(model: nn.Module) -> nn.Module:
    """The same model with the same parameters and buffers (not copies), but modules, and so hooks, of its own."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


class Stretch:
    """Rows of some sequences in memory, on the CPU, as they would be stored: by hook point, with token ids and where a row came from.

    `first`, `stop`: the sequences. `mean_square`: E‖x‖² by hook point. `is_end`: whether the text has no more.
    """

    def __init__(self, first: int, pieces: list[Rows], hooks: list[str], is_end: bool):
        self.first, self.stop, self.is_end = first, first + sum(len(piece.ids) for piece in pieces), is_end
        self.ids: Int[Tensor, "sequences context"] = torch.cat([piece.ids.cpu() for piece in pieces])
        self.has_row: Bool[Tensor, "sequences context"] = torch.cat([piece.keep.cpu() for piece in pieces])
        self.rows: dict[str, Encoded] = {hook: joined([_on_cpu(piece.rows[hook]) for piece in pieces]) for hook in hooks}
        self.mean_square = {hook: float(torch.cat([piece.norms[hook] for piece in pieces]).square().mean()) for hook in hooks}

    def __len__(self) -> int:
        return int(self.has_row.sum())


class Reading:
    """The rows of any stretch of a text's sequences, with the exclusions of a harvest.

    Forward passes are the harvest's, `forward_batch_size` sequences from a multiple of that on, whichever of them are wanted: the rows are
    bitwise those that it would write on this machine. Loads the transformer at once, on `device` (None: on a GPU where there is one). Not to
    be used by two threads at a time.

    Errors: InputError, as a harvest.
    """

    def __init__(self, harvest: Harvest, device: torch.device | None = None):
        self.harvest = harvest
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        transformer = Apart(harvest.transformer, self.device)
        manifest = Manifest(
            identity={},
            widths=transformer.widths(harvest.hooks),
            dtype=harvest.dtype,
            context_length=harvest.context_length,
            special_ids=sorted(transformer.special_ids()),
            sequences=harvest.sequences,
            shard_sequences=harvest.forward_batch_size,
            forward_batch_size=harvest.forward_batch_size,
        )
        self._passes = Passes(transformer, harvest.text, manifest, harvest.seed, harvest.on_nonfinite == "skip", self.device)
        with torch.autocast(self.device.type, enabled=False):
            self._medians = self._passes.median_norms(ROWS_FOR_MEDIAN)
        self._held: tuple[int, Rows | None] = (-1, None)
        self.end = harvest.sequences
        """How many sequences the text has; what was asked for, until its end is seen."""

    def rows(self, first: int, stop: int) -> Iterator[Rows]:
        """Sequences first … stop − 1, or up to the end of the text, some at a time."""
        at_once = self.harvest.forward_batch_size
        for start in range(first - first % at_once, stop, at_once):
            if start >= self.end:
                return
            window = self._window(start)
            here = 0 if window is None else len(window.ids)
            if here < min(at_once, self.harvest.sequences - start):
                self.end = start + here
            begin, end = max(first - start, 0), min(stop - start, here)
            if window is not None and begin < end:
                yield cut(window, begin, end)

    def stretch(self, first: int, rows: int) -> Stretch:
        """Whole sequences from `first` on, until they have at least so many rows, or the text ends. Errors: InputError where it has ended."""
        pieces: list[Rows] = []
        for piece in self.rows(first, self.harvest.sequences):
            of_sequences = piece.keep.sum(1).cumsum(0)
            if int(of_sequences[-1]) >= rows:
                pieces.append(cut(piece, 0, int(torch.searchsorted(of_sequences, rows)) + 1))
                break
            pieces.append(piece)
            rows -= int(of_sequences[-1])
        if not pieces:
            raise InputError(
                f"the text '{self.harvest.text.name}' ends after {self.end} sequences of {self.harvest.context_length} tokens, "
                f"and rows are wanted of those behind sequence {first}: lower data.validation_rows, or give a longer text"
            )
        is_end = first + sum(len(piece.ids) for piece in pieces) >= self.end
        return Stretch(first, pieces, self.harvest.hooks, is_end)

    def _window(self, start: int) -> Rows | None:
        """The forward pass that begins with a sequence; of a chunk's last one the next chunk may need the rest."""
        if self._held[0] != start:
            with torch.autocast(self.device.type, enabled=False):
                window = self._passes.batch(start)
            if window is not None and self.harvest.exclude_norm_above is not None:
                limits = {hook: self.harvest.exclude_norm_above * median for hook, median in self._medians.items()}
                window.select_(torch.stack([norms <= limits[hook] for hook, norms in window.norms.items()]).all(0))
            self._held = (start, window)
        return self._held[1]


def cut(rows: Rows, first: int, stop: int) -> Rows:
    """Sequences first … stop − 1 of them, without the counts."""
    before = torch.cat([torch.zeros(1, dtype=torch.int64), rows.keep.sum(1).cumsum(0).cpu()])
    here = slice(int(before[first]), int(before[stop]))
    encoded = {hook: values.at(here) for hook, values in rows.rows.items()}
    return Rows(rows.ids[first:stop], rows.keep[first:stop], encoded, {hook: norms[here] for hook, norms in rows.norms.items()}, 0, 0)


def _on_cpu(rows: Encoded) -> Encoded:
    return Encoded(rows.values.cpu(), None if rows.scale is None else rows.scale.cpu())
