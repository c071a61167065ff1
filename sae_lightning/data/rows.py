"""What every source of rows is to the rest of the house."""

import abc
import hashlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sae_lightning.data.batch import Batch, Hooks, Shape, Views
from sae_lightning.errors import InputError
from sae_lightning.ranks import are_latents_divided

PREFETCH = 2
SCALES = ("unit", "sqrt_d", "none")


class RowsDataModule(L.LightningDataModule, abc.ABC):
    """Rows for training and held-out rows.

    A source says what global batch number i is; the loaders, the share of each rank and the cursor are here.

    `batch_size` counts the rows of one batch over ALL ranks, so that a run is the same run on any number of devices; rank r
    of R takes rows r, r + R, … of each. The cursor `batches_trained` (global batches that went through `training_step`) is all that a
    checkpoint holds: a resumed run asks for the batches that follow.
    """

    transformer: Any = None
    """The `Transformer` that the rows come from, where there is one."""
    pictured: Any = None
    """`Pictured`: the images that the rows come from, where there are such and it is known where they are."""
    hook: str = ""
    """Of x, or its first one; empty where rows come from no transformer."""
    views: Views = "one"
    kept_in: Path | None = None
    """A folder of this machine for what is computed from the rows and of use to others, where there is one."""
    repeat_batches: int | None = None
    """Train on so many batches over and over: a step that learns can overfit."""

    def __init__(self, batch_size: int, scale: str = "unit"):
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size is {batch_size}: give a positive number of rows")
        if scale not in SCALES:
            raise InputError(f"data.scale is {scale!r}: choose one of {', '.join(SCALES)}")
        self.batch_size, self.scale_mode = batch_size, scale
        self.batches_trained = 0
        self.seconds_waited = 0.0
        """How long training of this process stood still for want of a batch."""

    @property
    def hooks(self) -> Hooks:
        """Of x and of y, in the order of `shape`."""
        return Hooks((self.hook,), (self.hook,))

    @property
    def network(self) -> Any:
        """The transformer or vision encoder that the rows come from, where it is known."""
        return self.transformer if self.pictured is None else self.pictured.encoder

    @property
    def rows_trained(self) -> int:
        """Rows of those batches, over all ranks."""
        return self.batches_trained * self.batch_size

    # -- what a source says -----------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """Known before any heavy work. Errors: InputError (no such store, no network, no such hook point)."""

    @property
    @abc.abstractmethod
    def scale(self) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]:
        """What rows of x and of y are divided by in training, constant within a hook point. After `prepare_data`."""

    @abc.abstractmethod
    def train_batch(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Rows rank, rank + ranks, … of global batch number `index` (float32, raw): a pure function of (seed, index).

        Callable from another thread. May lie on the device that trains already.
        """

    @abc.abstractmethod
    def held_out(self) -> Iterator[Batch]:
        """Validation rows in batches, the same ones in the same order each time; disjoint from training rows."""

    @abc.abstractmethod
    def sample(self, n: int, seed: int) -> Batch:
        """At most n training rows, drawn without replacement; equal on every rank; training is not deprived of them."""

    def tokens_held_out(self, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """Token ids of at most n validation sequences, and where a special token stands. Sources with a transformer only."""
        raise InputError(f"{type(self).__name__} has no tokens: its rows do not come from a transformer")

    def tokens_train(self, index: int, n: int) -> tuple[Int[Tensor, "n context"], Bool[Tensor, "n context"]]:
        """Token ids of n sequences that training rows come from, and where a special token stands: batch number `index` of such ones.

        A pure function of (seed, index, n). Sources with a transformer only.
        """
        raise InputError(f"{type(self).__name__} has no tokens: its rows do not come from a transformer")

    def images_held_out(self) -> tuple[Int[Tensor, " n"], Bool[Tensor, "n positions"]]:
        """Numbers of the validation images, ascending, and which of their positions gave a row. Sources with images only."""
        raise InputError(f"{type(self).__name__} has no images: its rows do not come from any")

    def numbers(self) -> dict[str, float]:
        """What is logged of the source itself, beside the batch just trained on, as details/<name>."""
        return {}

    @property
    def about(self) -> dict[str, Any]:
        """What run.json says of the source. JSON-able."""
        return {"source": type(self).__name__}

    @property
    def origin(self) -> dict[str, Any]:
        """What an exported SAE says of the rows' text or images, for other people's machines: {} where there is none. JSON-able."""
        return {}

    # -- loaders ----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        rank, ranks = self.shares
        if self.batch_size % ranks:
            raise InputError(f"data.batch_size={self.batch_size} is not divisible by {ranks} ranks: choose a multiple of {ranks}")
        length = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        period = self.repeat_batches or length
        batches = _Batches(lambda i: self.train_batch(i % period, rank, ranks), lambda: self.batches_trained, length, self._wait_)
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)

    @property
    def shares(self) -> tuple[int, int]:
        """Which share of each batch is this process's, and how many shares there are: one where processes divide latents instead."""
        assert self.trainer is not None
        return (0, 1) if are_latents_divided() else (self.trainer.global_rank, self.trainer.world_size)

    def _wait_(self, seconds: float) -> None:
        self.seconds_waited += seconds

    def val_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        rank, ranks = self.shares
        return DataLoader(_HeldOut(lambda: (share(batch, rank, ranks) for batch in self.held_out())), batch_size=None, collate_fn=_as_it_is)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, int]:
        return {"batches_trained": self.batches_trained}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.batches_trained = state_dict["batches_trained"]


def scale_of(mean_square_norm: float, d: int, mode: str) -> float:
    """What rows of width d are divided by: `unit` makes E‖x‖² = 1, `sqrt_d` makes it d, `none` leaves them."""
    return {"unit": math.sqrt(mean_square_norm), "sqrt_d": math.sqrt(mean_square_norm / d), "none": 1.0}[mode]


def origin_of(identity: dict[str, Any]) -> dict[str, Any]:
    """Of what determines the rows of a store, what is read."""
    return {key: identity[key] for key in ("text", "images", "texts", "context_length") if key in identity}


class _Batches(IterableDataset):
    """Batches start()…length − 1, made ahead by one thread."""

    def __init__(self, batch: Callable[[int], Batch], start: Callable[[], int], length: int, waited: Callable[[float], None]):
        self.batch, self.start, self.length, self.waited = batch, start, length, waited

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return prefetched((self.batch(i) for i in range(self.start(), self.length)), waited=self.waited)


class _HeldOut(IterableDataset):
    def __init__(self, batches: Callable[[], Iterator[Batch]]):
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()


def share(batch: Batch, rank: int, ranks: int) -> Batch:
    """Rows rank, rank + ranks, … of a batch."""
    if ranks == 1:
        return batch
    x = batch.x[rank::ranks]
    return Batch(x, x if batch.y is batch.x else batch.y[rank::ranks])


def _as_it_is(batch: Any) -> Any:
    return batch


def prefetched(items: Iterator[Batch], ahead: int = PREFETCH, waited: Callable[[float], None] | None = None) -> Iterator[Batch]:
    """The same items, made by another thread up to `ahead` before they are asked for. An error there is raised here.

    `waited` is told of each item how many seconds there was nothing to hand out.
    """
    ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: Batch | None, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, whatever it is
            put(None, error)

    thread = threading.Thread(target=work, daemon=True, name="rows")
    thread.start()
    try:
        while True:
            asked = time.perf_counter()
            item, error = ready.get()
            if waited is not None:
                waited(time.perf_counter() - asked)
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def generator(*key: int | str) -> torch.Generator:
    """A generator seeded by (seed, purpose, step, …): equal on every rank and after a resume."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
