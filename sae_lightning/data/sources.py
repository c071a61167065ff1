"""What the configurations of data sources name: rows harvested from what reads a text or images, and rows of a store that is there."""

from collections.abc import Container
from pathlib import Path
from typing import Literal

from sae_lightning.data.batch import Views
from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.foreign.existing import ExistingCache, existing
from sae_lightning.data.harvest import Harvest
from sae_lightning.data.image_harvest import ImageHarvest
from sae_lightning.data.images import Images, Pictured
from sae_lightning.data.live import ENDLESS, LiveDataModule
from sae_lightning.data.mixed import MixedDataModule
from sae_lightning.data.order import LastBatch
from sae_lightning.data.remote.store import RemoteSource, is_remote
from sae_lightning.data.store import ExistingStore
from sae_lightning.data.text import Text
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Network, Transformer
from sae_lightning.transformers.vision import VisionEncoder


def harvested(
    transformer: Network,
    text: Text,
    stores: str,
    batch_size: int,
    hook: str | None = None,
    hooks: list[str] | None = None,
    context_length: int = 128,
    max_tokens: int | None = 1_000_000,
    dtype: str = "bfloat16",
    on_nonfinite: Literal["refuse", "skip"] = "refuse",
    exclude_norm_above: float | None = None,
    shard_rows: int = 32_768,
    forward_batch_size: int = 32,
    harvest_seed: int = 0,
    validation_rows: int | None = None,
    pool_rows: int = 131_072,
    scale: Literal["unit", "sqrt_d", "none"] = "unit",
    seed: int = 0,
    hook_out: str | None = None,
    views: Views = "one",
    mode: Literal["store", "live"] = "store",
    last_batch: LastBatch = "fill",
    shards_at_once: int | None = None,
) -> ActivationDataModule | LiveDataModule:
    """Rows of a transformer that reads a text; the store below `stores` is made where it is missing. With `mode` live there is none: the
    transformer reads while the SAE is trained, at most `max_tokens` in a pass of the text (None: all of it, `mode` live only).

    `views`: rows at `hook` (`one`), x at `hook` and y at `hook_out` (`pair`), or all of `hooks` side by side (`stack`). `hooks` are
    harvested together: None means those that rows are wanted of, which are the transformer's own where they are not given: the first
    of its `hooks`, the input and output of its middle MLP, the outputs of three of its layers. `seed` orders the rows and never
    harvests again; `harvest_seed` is the text's. The rest: `Harvest`, `ActivationDataModule`, `LiveDataModule`. Errors: InputError, theirs,
    for a choice of hook points that is none, and for fewer tokens than a batch has rows.
    """
    if max_tokens is None and mode == "store":
        raise InputError("data.max_tokens is null, which would store a text without end: give a number, or set data.mode=live")
    max_tokens = ENDLESS if max_tokens is None else max_tokens
    if max_tokens < batch_size:
        raise InputError(f"data.max_tokens={max_tokens} is less than one batch of data.batch_size={batch_size} rows: raise it")
    if not isinstance(transformer, Transformer):
        raise InputError(f"'{transformer.name}' reads images, and this is a text: set data/transformer to a language model, or data=images")
    hook, hook_out, hooks = _located(transformer, hook, hook_out, hooks)
    hooks, trained = _harvested_and_trained(transformer, views, hooks, hook, hook_out)
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
    if mode == "live":
        if last_batch != "fill" or shards_at_once is not None:
            raise InputError(
                "data.last_batch and data.shards_at_once are of a store, and data.mode=live has none: set them to fill and null"
            )
        return LiveDataModule(harvest, trained[0], batch_size, validation_rows, pool_rows, scale, seed, others=trained[1:], views=views)
    made = ActivationDataModule(
        harvest,
        trained[0],
        batch_size,
        validation_rows,
        pool_rows,
        scale,
        seed,
        transformer,
        trained[1:],
        views,
        last_batch,
        shards_at_once,
    )
    made.kept_in = Path(stores) / KEPT
    return made


def of_images(
    transformer: Network,
    images: Images,
    stores: str,
    batch_size: int,
    hook: str | None = None,
    hooks: list[str] | None = None,
    class_token: bool = False,
    max_images: int = 1000,
    dtype: str = "bfloat16",
    on_nonfinite: Literal["refuse", "skip"] = "refuse",
    exclude_norm_above: float | None = None,
    shard_rows: int = 32_768,
    forward_batch_size: int = 32,
    harvest_seed: int = 0,
    validation_rows: int | None = None,
    pool_rows: int = 131_072,
    scale: Literal["unit", "sqrt_d", "none"] = "unit",
    seed: int = 0,
    hook_out: str | None = None,
    views: Views = "one",
    last_batch: LastBatch = "fill",
    shards_at_once: int | None = None,
) -> ActivationDataModule:
    """Rows of a vision encoder that looks at `max_images` images: patches, and with `class_token` its class token. The store below
    `stores` is made where it is missing. `harvest_seed` says which images, where there are more. The rest: `harvested`, `ImageHarvest`.

    Errors: InputError, theirs, and for a transformer that reads no images.
    """
    if not isinstance(transformer, VisionEncoder):
        raise InputError(f"'{transformer.name}' reads text, and these are images: set data/transformer to dinov2_small or hf_vision")
    hook, hook_out, hooks = _located(transformer, hook, hook_out, hooks)
    hooks, trained = _harvested_and_trained(transformer, views, hooks, hook, hook_out)
    harvest = ImageHarvest(
        transformer, images, hooks, max_images, class_token, dtype, on_nonfinite, exclude_norm_above, shard_rows, forward_batch_size,
        harvest_seed, stores,
    )  # fmt: skip
    made = ActivationDataModule(
        harvest, trained[0], batch_size, validation_rows, pool_rows, scale, seed, None, trained[1:], views, last_batch, shards_at_once
    )
    made.pictured = Pictured(transformer, images, harvest_seed)
    made.kept_in = Path(stores) / KEPT
    return made


def _harvested_and_trained(
    network: Network, views: Views, hooks: list[str] | None, hook: str | None, hook_out: str | None
) -> tuple[list[str], list[str]]:
    """The hook points that are harvested together, and those of them that rows are wanted of. Errors: as `chosen`."""
    if hooks is not None or views == "stack":
        hooks = list(hooks or network.layers())
        return hooks, chosen(views, hooks, hook, hook_out)
    if views == "pair":
        trained = chosen(views, None if hook or hook_out else network.mlp(), hook, hook_out)
        return trained, trained
    hooks = network.hooks if hook is None else [hook]
    return hooks, chosen(views, hooks, hook, hook_out)


def cached(
    store: str | list[str],
    batch_size: int,
    hook: str | None = None,
    validation_rows: int | None = None,
    pool_rows: int = 131_072,
    scale: Literal["unit", "sqrt_d", "none"] = "unit",
    seed: int = 0,
    transformer: Network | None = None,
    hook_out: str | None = None,
    hooks: list[str] | None = None,
    views: Views = "one",
    stores: str = "stores",
    last_batch: LastBatch = "fill",
    shards_at_once: int | None = None,
    cache_bytes: int = 20_000_000_000,
    weights: list[float] | None = None,
) -> ActivationDataModule | MixedDataModule:
    """Rows of what lies in the folder `store`: a store, which must be complete, or other people's files (`existing`), whose statistics
    are kept below `stores`. A URL is that of a store; at most `cache_bytes` of its shards are kept below `stores`, and rows are shuffled
    over as many shards at a time as half of them holds, where `shards_at_once` says nothing else. A list of these is mixed with
    `weights` (`MixedDataModule`); each URL has its share of the bytes.

    `views`: rows at `hook` (`one`; None: the first hook point), x at `hook` and y at `hook_out` (`pair`; None: the first two), or of
    `hooks` side by side (`stack`; None: all). With the `transformer` that made it, evaluation can splice. The rest:
    `ActivationDataModule`. Errors: InputError, theirs, and for a folder that is no store.
    """
    given = [store] if isinstance(store, str) else list(store)
    if not given:
        raise InputError("data.store is an empty list: give a folder or URL, or several")
    if len(given) == 1 and weights is not None:
        raise InputError(f"data.weights={list(weights)} are of several stores, and data.store is one: give a list there, or leave them out")
    if hooks is not None and views != "stack":
        raise InputError("data.hooks are what dictionary=crosscoder reads; any other reads data.hook of a store: set data.hooks=null")
    if transformer is not None and not isinstance(transformer, Transformer):
        raise InputError(f"'{transformer.name}' reads images, and nothing is evaluated inside it: leave out data/transformer")
    made: list[ActivationDataModule] = []
    trained: list[str] = []
    for i, one in enumerate(given):
        source, at_once = _source(one, stores, cache_bytes // len(given), shards_at_once)
        if transformer is not None and not made:
            hook, hook_out, hooks = _located(transformer, hook, hook_out, hooks, source.widths())
        if not made:  # what is named is looked for in the store later
            held = list(source.widths()) if hook is None and hook_out is None else None
            trained = chosen(views, hooks or held, hook, hook_out)
        if transformer is not None and isinstance(source, ExistingCache):
            source.check_transformer(transformer, trained)
        elif transformer is not None and not isinstance(source, ExistingCache) and source.manifest.is_of_images:
            raise InputError(f"{source.path} is of images, which '{transformer.name}' does not read: leave out data/transformer")
        made.append(
            ActivationDataModule(
                source,
                trained[0],
                batch_size,
                validation_rows,
                pool_rows,
                scale,
                seed + i * APART,
                transformer,
                trained[1:],
                views,
                last_batch,
                at_once,
            )
        )
    source = made[0] if len(made) == 1 else MixedDataModule(made, weights)
    source.kept_in = Path(stores) / KEPT
    return source


def _located(
    transformer: Network, hook: str | None, hook_out: str | None, hooks: list[str] | None, held: Container[str] = ()
) -> tuple[str | None, str | None, list[str] | None]:
    """The same with module paths in place of names of TransformerLens, but for names that a store has (`held`)."""
    named = [name for name in (hook, hook_out, *(hooks or [])) if name is not None and name not in held]
    path = dict(zip(named, transformer.paths(named), strict=True))
    first, second = (None if name is None else path.get(name, name) for name in (hook, hook_out))
    return first, second, None if hooks is None else [path.get(name, name) for name in hooks]


KEPT = "evaluations"
"""Below `stores`: what evaluations of several SAEs share."""
APART = 1_000_003
"""Between the seeds of stores that are mixed: two of one shape are not shuffled alike."""


def _source(
    store: str, stores: str, cache_bytes: int, shards_at_once: int | None
) -> tuple[ExistingStore | ExistingCache | RemoteSource, int | None]:
    """Of the rows in a folder or behind a URL, and over how many shards at a time they are shuffled."""
    if is_remote(store):
        source = RemoteSource(store, Path(stores), cache_bytes)
        return source, source.shards_at_once(shards_at_once)
    return existing(Path(store), Path(stores)), shards_at_once


def chosen(views: Views, hooks: list[str] | None, hook: str | None, hook_out: str | None) -> list[str]:
    """The hook points that rows are wanted of, x before y: among `hooks`, or any where that is None.

    Errors: InputError for a choice that is none: not among them, one of two, one where several are needed.
    """
    if views == "stack":
        if hook is not None or hook_out is not None:
            raise InputError("dictionary=crosscoder reads all of data.hooks: set data.hook and data.hook_out to null")
        if len(hooks or []) < 2:
            raise InputError(f"dictionary=crosscoder needs two hook points or more, and there is only '{(hooks or [''])[0]}': {_MORE}")
        if len(set(hooks or [])) < len(hooks or []):
            raise InputError(f"data.hooks={hooks} names a hook point twice: give different ones")
        return list(hooks or [])
    if views == "one" and hook_out is not None:
        raise InputError(f"data.hook_out='{hook_out}' is what a transcoder predicts: add dictionary=transcoder, or set it to null")
    given = [hook] if views == "one" else [hook, hook_out]
    if views == "pair" and (hook is None) != (hook_out is None):
        missing = "hook_out" if hook_out is None else "hook"
        raise InputError(f"dictionary=transcoder reads data.hook and predicts data.hook_out: add data.{missing}=…, or set both to null")
    if views == "pair" and hook is not None and hook == hook_out:
        raise InputError(f"data.hook and data.hook_out are both '{hook}': name two, or choose dictionary=autoencoder")
    if hook is None:
        if len(hooks or []) < len(given):
            raise InputError(f"dictionary=transcoder needs two hook points, and there is only '{(hooks or [''])[0]}': {_MORE}")
        return list(hooks or [])[: len(given)]
    for key, name in zip(("hook", "hook_out"), given, strict=False):
        if hooks is not None and name not in hooks:
            raise InputError(
                f"data.{key}='{name}' is not among data.hooks={hooks}: add it there, or set data.hooks=null to harvest what is needed"
            )
    return [name for name in given if name is not None]


_MORE = "name more in data.hooks when the store is made"
