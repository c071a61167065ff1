"""What the configurations of data sources name: rows harvested from a transformer that reads a text, and rows of a store that is there."""

from pathlib import Path
from typing import Literal

from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.harvest import Harvest
from sae_lightning.data.store import ExistingStore
from sae_lightning.data.text import Text
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer


def harvested(
    transformer: Transformer,
    text: Text,
    stores: str,
    batch_size: int,
    hook: str | None = None,
    hooks: list[str] | None = None,
    context_length: int = 128,
    max_tokens: int = 1_000_000,
    dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16",
    on_nonfinite: Literal["refuse", "skip"] = "refuse",
    exclude_norm_above: float | None = None,
    shard_rows: int = 32_768,
    forward_batch_size: int = 32,
    harvest_seed: int = 0,
    validation_rows: int | None = None,
    pool_rows: int = 131_072,
    scale: Literal["unit", "sqrt_d", "none"] = "unit",
    seed: int = 0,
) -> ActivationDataModule:
    """Rows at `hook` of a transformer that reads a text; the store below `stores` is made where it is missing.

    `hooks` are harvested together: None means `hook` alone, or the transformer's own hook points where that is None too; `hook`
    None is the first of them. `seed` orders the rows and never harvests again; `harvest_seed` is the text's. The rest: `Harvest`,
    `ActivationDataModule`. Errors: InputError, theirs, and for fewer tokens than a batch has rows.
    """
    if max_tokens < batch_size:
        raise InputError(f"data.max_tokens={max_tokens} is less than one batch of data.batch_size={batch_size} rows: raise it")
    if hooks is None:
        hooks = transformer.hooks if hook is None else [hook]
    if hook is not None and hook not in hooks:
        raise InputError(
            f"data.hook='{hook}' is not among data.hooks={list(hooks)}: add it there, or set data.hooks=null to harvest it alone"
        )
    harvest = Harvest(
        transformer,
        text,
        hooks=hooks,
        context_length=context_length,
        max_tokens=max_tokens,
        dtype=dtype,
        on_nonfinite=on_nonfinite,
        exclude_norm_above=exclude_norm_above,
        shard_rows=shard_rows,
        forward_batch_size=forward_batch_size,
        seed=harvest_seed,
        stores=stores,
    )
    return ActivationDataModule(harvest, hook or harvest.hooks[0], batch_size, validation_rows, pool_rows, scale, seed, transformer)


def cached(
    store: str,
    batch_size: int,
    hook: str | None = None,
    validation_rows: int | None = None,
    pool_rows: int = 131_072,
    scale: Literal["unit", "sqrt_d", "none"] = "unit",
    seed: int = 0,
    transformer: Transformer | None = None,
) -> ActivationDataModule:
    """Rows at `hook` (None: the first hook point) of the store in the folder `store`, which must be complete.

    With the `transformer` that made it, evaluation can splice. The rest: `ActivationDataModule`. Errors: InputError, theirs, and for a
    folder that is no store.
    """
    source = ExistingStore(Path(store))
    return ActivationDataModule(
        source, hook or next(iter(source.widths())), batch_size, validation_rows, pool_rows, scale, seed, transformer
    )
