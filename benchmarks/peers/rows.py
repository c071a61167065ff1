"""Cached activations as other libraries read them; run by the interpreter of a library's own environment.

    .peers/litdata/bin/python -m benchmarks.peers.rows litdata write ROWS.npy FOLDER
    .peers/litdata/bin/python -m benchmarks.peers.rows litdata read FOLDER ORDER.npy --pool 65536

`write` makes of float16 rows [n, d] what the library reads; `read` takes one pass, in shuffled batches of float32 rows, prints a line of JSON,
{"rows": how many, "seconds": of the pass}, and keeps the first two entries of every row in their order. Imports nothing of sae_lightning.
"""
# pyright: reportMissingImports=false

import argparse
import importlib
import importlib.metadata
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HOOK, CONTEXT, BATCH, BLOCK = "rows", 128, 4096, 64


class SAELens:
    """Its `ActivationsStore` on what its `CacheActivationsRunner` leaves; 32 sequences at a time, the default."""

    package, module = "sae-lens", "sae_lens.training.activations_store"

    def write(self, rows: np.ndarray, folder: Path) -> None:
        from datasets import Array2D, Dataset, Features, Sequence, Value, concatenate_datasets

        d = rows.shape[1]
        token_ids = Sequence(Value("int32"), length=CONTEXT)
        features = Features({HOOK: Array2D(shape=(CONTEXT, d), dtype="float16"), "token_ids": token_ids})
        sequences = rows.reshape(-1, CONTEXT, d)
        made = []
        for first in range(0, len(sequences), 256):
            some = sequences[first : first + 256]
            made.append(Dataset.from_dict({HOOK: some, "token_ids": np.zeros(some.shape[:2], np.int32)}, features=features))
        concatenate_datasets(made).save_to_disk(folder)

    def read(self, folder: Path, pool: int) -> Iterator[Tensor]:
        from sae_lens.training.activations_store import ActivationsStore

        d = json.loads((folder / "dataset_info.json").read_text())["features"][HOOK]["shape"][1]
        model: Any = None  # a store of cached activations never asks it
        store = ActivationsStore(
            model=model, dataset=None, streaming=False, hook_name=HOOK, hook_head_index=None, context_size=CONTEXT, d_in=d,
            n_batches_in_buffer=pool // CONTEXT, total_training_tokens=1, store_batch_size_prompts=32, train_batch_size_tokens=BATCH,
            prepend_bos=False, normalize_activations="none", device=torch.device("cpu"), dtype="float32", cached_activations_path=str(folder),
        )  # fmt: skip
        assert store.cached_activation_dataset is not None
        batches = len(store.cached_activation_dataset) * CONTEXT // BATCH - pool // 2 // BATCH  # half a pool stays behind: it is endless
        for _ in range(batches):
            yield store.next_batch()


class Datasets:
    """A row per example, Hugging Face datasets' own shuffle over all of them, its torch format."""

    package, module = "datasets", "datasets"

    def write(self, rows: np.ndarray, folder: Path) -> None:
        import pyarrow
        from datasets import Dataset

        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.ravel()), rows.shape[1])
        Dataset(pyarrow.table({HOOK: values})).save_to_disk(folder)

    def read(self, folder: Path, pool: int) -> Iterator[Tensor]:
        from datasets import load_from_disk

        shuffled: Any = load_from_disk(str(folder)).shuffle(seed=0).with_format("torch")  # type: ignore[union-attr]
        for batch in shuffled.iter(batch_size=BATCH, drop_last_batch=True):
            yield batch[HOOK].float()


def _block(at: tuple[str, int]) -> Tensor:
    file, first = at
    return torch.from_numpy(np.load(file, mmap_mode="r")[first : first + BLOCK].copy())


class LitData:
    """64 neighbours per example, its own shuffle of them."""

    package, module = "litdata", "litdata"

    def write(self, rows: np.ndarray, folder: Path) -> None:
        from litdata import optimize

        file = str(folder) + ".npy"
        np.save(file, rows)
        optimize(
            _block,
            [(file, first) for first in range(0, len(rows), BLOCK)],
            str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            mode="overwrite",
        )
        Path(file).unlink()

    def read(self, folder: Path, pool: int) -> Iterator[Tensor]:
        from litdata import StreamingDataLoader, StreamingDataset

        def joined(blocks: list[Tensor]) -> Tensor:
            return torch.cat(blocks).float()

        dataset = StreamingDataset(str(folder), shuffle=True, seed=0, drop_last=True)
        yield from StreamingDataLoader(dataset, batch_size=BATCH // BLOCK, num_workers=0, collate_fn=joined)


LIBRARIES = {"sae_lens": SAELens, "datasets": Datasets, "litdata": LitData}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("do", choices=("write", "read"))
    parser.add_argument("source", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--pool", type=int, default=65_536, help="rows that are shuffled together, where the library asks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    library = LIBRARIES[given.library]()
    if given.do == "write":
        library.write(np.load(given.source), given.to)
        return
    importlib.import_module(library.module)
    began, seen = time.perf_counter(), []
    for batch in library.read(given.source, given.pool):
        seen.append(batch[:, :2].clone())
    seconds = time.perf_counter() - began
    first = torch.cat(seen).numpy()
    np.save(given.to, first)
    print(json.dumps({"rows": len(first), "seconds": seconds, "version": importlib.metadata.version(library.package)}))


if __name__ == "__main__":
    main()
