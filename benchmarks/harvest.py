"""What a harvest takes beside the forward passes in it, and beside the bare products of their linear layers.

    python -m benchmarks.harvest                                                              # glassllm: no network after the first time
    python -m benchmarks.harvest data/transformer=stories15m data.transformer.name=FOLDER     # any words of a harvest

Four sides take turns, a few shards each: the products of all linear layers that a pass goes through up to the hook point, on numbers that
are there; the passes, from token ids to rows as they are stored; the harvest, which also copies the rows, adds up their statistics, and
writes shards with their checksums while the next passes are made; and one that waits for each shard to be written. Texts are random ids.
Printed are medians over turns, in tokens/s and as ratios, and the operations/s that 2 operations for each parameter and token make of it
(benchmarks.costs).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sae_lightning.data.forward import Passes
from sae_lightning.data.harvest import Harvest
from sae_lightning.data.text import Text
from sae_lightning.data.writer import ShardBuffer, StoreWriter, behind
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer
from sae_lightning.run.instantiate import instantiate
from sae_lightning.transformers.base import Transformer
from sae_lightning.transformers.hooks import read_inputs

CONF = Path(__file__).parents[1] / "conf"
TURNS, SHARDS = 5, 3


class RandomText(Text):
    """Ids drawn anew for each sequence."""

    name = "random"

    def identity(self) -> dict[str, Any]:
        return {"text": "random"}

    def check(self) -> None: ...

    def sequences(self, transformer: Transformer, context_length: int, start: int, seed: int) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(start)
        vocabulary = transformer.config().get_text_config().vocab_size
        while True:
            yield torch.randint(vocabulary // 2, vocabulary, (context_length,), generator=generator).tolist()


def linear_layers(passes: Passes, hooks: list[str], ids: Tensor) -> list[nn.Linear]:
    """Those that a pass goes through, in order."""
    found: list[nn.Linear] = []
    layers = [module for module in passes.model.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_hook(lambda *_, layer=layer: found.append(layer)) for layer in layers]
    read_inputs(passes.model, hooks, ids.shape, {"input_ids": ids})
    for handle in handles:
        handle.remove()
    return found


def products(layers: list[nn.Linear], tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    x = {width: torch.randn(tokens, width, dtype=dtype, device=device) for width in {layer.in_features for layer in layers}}

    def call() -> None:
        for layer in layers:
            F.linear(x[layer.in_features], layer.weight)

    return call


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def measure(harvest: Harvest, folder: Path, turns: int) -> tuple[dict[str, float], int, int]:
    """Seconds of a turn by side; its tokens; parameters of the linear layers."""
    manifest = harvest._new_manifest(harvest.widths())
    writer, passes = StoreWriter(folder, manifest), Passes(harvest.transformer, harvest.text, manifest, 0, False)
    writer.set_median_norms(passes.median_norms(1))
    batches = manifest.shard_sequences // manifest.forward_batch_size
    tokens = manifest.forward_batch_size * manifest.context_length
    ids = passes.batch(0).ids  # type: ignore[union-attr]
    layers = linear_layers(passes, list(manifest.widths), ids)
    bare = products(layers, tokens, layers[0].weight.dtype, passes.device)
    starts = range(0, manifest.shard_sequences, manifest.forward_batch_size)

    def harvested(turn: int, do: Callable[..., None]) -> None:
        for index in range(turn * SHARDS, (turn + 1) * SHARDS):
            buffer = ShardBuffer(manifest, index * manifest.shard_sequences, manifest.shard_sequences)
            for start in starts:
                rows = passes.batch(buffer.first_sequence + start)
                assert rows is not None
                buffer.add_(rows, None)
            do(writer.write_shard, index, buffer)

    def written_behind(turn: int) -> None:
        with behind() as do:
            harvested(turn, do)

    sides: dict[str, Callable[[int], object]] = {
        "products": lambda _: [bare() for _ in range(SHARDS * batches)],
        "passes": lambda turn: [
            passes.batch((turn * SHARDS + i) * manifest.shard_sequences + start) for i in range(SHARDS) for start in starts
        ],
        "harvest": written_behind,
        "waiting": lambda turn: harvested(turn, lambda call, *arguments: call(*arguments)),
    }
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, call in sides.items():
            taken[side].append(seconds(lambda call=call, turn=turn: call(turn)))
    parameters = sum(layer.weight.numel() for layer in layers)
    return {side: statistics.median(times[1:]) for side, times in taken.items()}, tokens * batches * SHARDS, parameters


def main(words: list[str]) -> None:
    data = validate(Composer(CONF, "train"), ["data=sampled_text", *words]).data
    with tempfile.TemporaryDirectory() as folder:
        harvest = Harvest(
            instantiate(data.transformer), RandomText(False), context_length=data.context_length, max_tokens=2 * SHARDS * (TURNS + 2) * data.shard_rows,
            dtype=data.dtype, shard_rows=data.shard_rows, forward_batch_size=data.forward_batch_size, stores=folder,
        )  # fmt: skip
        taken, tokens, parameters = measure(harvest, Path(folder) / "store", TURNS)
    what = f"{harvest.transformer.name}, {', '.join(harvest.hooks)}: {parameters / 1e6:.2f} M parameters in linear layers up to there"
    print(f"{what}; {torch.get_num_threads()} threads")
    for side, median in taken.items():
        print(
            f"  {side:9s} {tokens / median:10,.0f} tokens/s   {taken['products'] / median:4.2f} of the products' "
            f"  {2 * parameters * tokens / median / 1e9:6.1f} Gop/s by the formula"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
