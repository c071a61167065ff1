"""A text, and what the transformer makes of it as it is: the same for every SAE, so it is computed once and kept on disk."""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.data.batch import Hooks
from sae_lightning.files import write_json
from sae_lightning.transformers.hooks import unembedding
from sae_lightning.transformers.predictions import counted, observed, predictions

log = logging.getLogger(__name__)


class Text(NamedTuple):
    """Held-out sequences, the transformer that reads them, and where."""

    model: nn.Module
    identity: dict[str, Any]
    """What `model` is, as its `Transformer` says."""
    hooks: Hooks
    widths: tuple[int, ...]
    """Of the hook points of y."""
    input_ids: Int[Tensor, "n context"]
    special: Bool[Tensor, "n context"]
    batch_tokens: int

    def batches(self) -> Iterator[tuple[Int[Tensor, "batch context"], Bool[Tensor, "batch context"]]]:
        at_once = max(1, self.batch_tokens // self.input_ids.shape[1])
        return zip(self.input_ids.split(at_once), self.special.split(at_once), strict=True)

    def key(self) -> str:
        """Of all that determines what the transformer makes of it."""
        known = json.dumps([self.identity, self.hooks, list(self.input_ids.shape)], sort_keys=True)
        digest = hashlib.blake2b(known.encode(), digest_size=10)
        for tensor in (self.input_ids, self.special):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class CleanBatch(NamedTuple):
    """Of some sequences: x at each position that is not special, and what is predicted at the `counted` ones."""

    input_ids: Int[Tensor, "batch context"]
    special: Bool[Tensor, "batch context"]
    x: Float[Tensor, "rows d_in"]
    logits: Float[Tensor, "n vocabulary"]

    @property
    def targets(self) -> Int[Tensor, " n"]:
        return self.input_ids.flatten()[counted(self.special) + 1]


class CleanPass:
    """A forward pass over the whole text, whose x and predictions are read again as often as they are wanted.

    What is kept, in files below `folder` (None: in temporary ones): x and y's mean in float32, and the rows that the transformer's last
    linear layer reads, from which that layer makes the predictions again; a vocabulary's worth of logits for each token would be too
    much. A transformer that does more after that layer reads the text again for its predictions. `numbers` are what an evaluation
    has found of the text; `keep` adds to them.
    """

    def __init__(self, text: Text, folder: Path | None = None):
        self.text = text
        self._head = unembedding(text.model)
        path = None if folder is None else folder / f"clean-{text.key()}"
        if path is not None and not (path / "clean.json").is_file():
            path = self._made(path)
        if path is None:
            path = Path(tempfile.mkdtemp(prefix="clean-"))
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
            self._write(path)
        self.path = path
        self.numbers: dict[str, Any] = json.loads((path / "clean.json").read_text(encoding="utf-8"))
        self._x = np.load(path / "x.npy", mmap_mode="r")
        self._inputs = np.load(path / "head.npy", mmap_mode="r") if self.numbers["head"] else None
        self.mean = torch.from_numpy(np.load(path / "mean.npy")).to(text.input_ids.device)

    def keep(self, **numbers: float) -> None:
        """Numbers that do not depend on the SAE, for later evaluations."""
        self.numbers |= numbers
        with contextlib.suppress(OSError):  # a folder that others own is read only
            write_json(self.path / "clean.json", self.numbers)

    @torch.no_grad()
    def batches(self) -> Iterator[CleanBatch]:
        """In the order of the text, on the device of its ids."""
        rows, positions = 0, 0
        for ids, special in self.text.batches():
            n, m = int((~special).sum()), len(counted(special))
            x = self._at(self._x, rows, n)
            if self._inputs is not None and self._head is not None:
                logits = self._head(self._at(self._inputs, positions, m).to(self._head.weight.dtype))
            else:
                logits = predictions(self.text.model, ids, special)
            yield CleanBatch(ids, special, x, logits)
            rows, positions = rows + n, positions + m

    def _at(self, kept: np.ndarray, start: int, n: int) -> Tensor:
        return torch.from_numpy(np.array(kept[start : start + n])).to(self.text.input_ids.device)

    def _made(self, path: Path) -> Path | None:
        """`path`, when it was written; None where it cannot be."""
        from filelock import FileLock

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not (path / "clean.json").is_file():
                    with tempfile.TemporaryDirectory(prefix=".clean-", dir=path.parent) as temporary:
                        made = Path(temporary, "made")
                        made.mkdir()
                        self._write(made)
                        made.rename(path)
        except OSError as error:
            log.warning("what the transformer makes of the text as it is cannot be kept in %s (%s)", path.parent, error)
            return None
        return path

    @torch.no_grad()
    def _write(self, path: Path) -> None:
        text, hooks = self.text, (*self.text.hooks.x, *self.text.hooks.y)
        total = torch.zeros(sum(text.widths), dtype=torch.float64, device=text.input_ids.device)
        rows, positions, is_head = int((~text.special).sum()), len(counted(text.special)), self._head is not None
        with open(path / "x.npy", "wb") as x_file, open(path / "head.npy", "wb") as head_file:
            for ids, special in text.batches():
                with _inputs(self._head) as inputs:
                    logits, found = observed(text.model, ids, special, hooks)
                _append(x_file, torch.cat([found[hook] for hook in text.hooks.x], dim=1), rows)
                total += torch.cat([found[hook] for hook in text.hooks.y], dim=1).sum(0, dtype=torch.float64)
                if is_head and self._head is not None:
                    is_head = len(inputs) == 1 and inputs[0].shape[:2] == ids.shape
                    read = inputs[0].flatten(0, 1)[counted(special)] if is_head else logits
                    is_head = is_head and _are_equal(self._head(read), logits)
                    _append(head_file, read, positions)
        if not is_head:
            (path / "head.npy").unlink()
        np.save(path / "mean.npy", (total / max(rows, 1)).float().cpu().numpy())
        write_json(path / "clean.json", {"head": is_head})


def _are_equal(ours: Tensor, logits: Tensor) -> bool:
    """To what other shapes of a product do to the last bits."""
    bits = 1e-5 if logits.dtype == torch.float32 else 1e-2
    return ours.shape == logits.shape and torch.allclose(ours, logits, rtol=bits, atol=bits)


@contextlib.contextmanager
def _inputs(head: nn.Linear | None) -> Iterator[list[Tensor]]:
    """What the layer reads while this is open."""
    found: list[Tensor] = []
    if head is None:
        yield found
        return
    handle = head.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        yield found
    finally:
        handle.remove()


def _append(file: IO[bytes], rows: Float[Tensor, "n d"], of: int) -> None:
    """To a .npy file of `of` rows in all, in float32. Not by a memory map: on a full disk that ends the process."""
    if not file.tell():
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (of, rows.shape[1])})
    file.write(rows.float().cpu().contiguous().numpy().tobytes())
