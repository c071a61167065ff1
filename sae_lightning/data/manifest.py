"""What an activation store says about itself."""

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sae_lightning.data.encoded import DTYPES
from sae_lightning.errors import InputError
from sae_lightning.files import write_text

SCHEMA = 2
"""Of what is written; every one up to it is read. 2: int8 rows with a scale each, stores that were merged or cut."""

MANIFEST = "manifest.json"
STATISTICS = "statistics.safetensors"
STAMPS = ".verified.json"

TOKEN, SEQUENCE, POSITION = "token", "sequence", "position"
"""Tensors of a shard with one entry per row: token id [N] int32, number of the sequence [N] int64, position in it [N] int32."""
TOKENS, SEQUENCE_IDS, SEQUENCE_ROWS = "tokens", "sequence_ids", "sequence_rows"
"""Tensors with one entry per sequence: its token ids [S, context] int32, its number [S] int64, how many rows it gave [S] int32."""

SHARE = "share"
"""What an identity has where a store holds a part of a whole: which one."""

LARGE = 10.0
"""A row with a norm above LARGE × the median is counted as a sink token."""


class Share(NamedTuple):
    """The sequences first … stop − 1 of the `of` sequences of a whole."""

    first: int
    stop: int
    of: int

    @property
    def is_whole(self) -> bool:
        return self == (0, self.of, self.of)


@dataclasses.dataclass
class Counts:
    """How many tokens were fed, how many rows they gave, and why the others gave none. `large_norms`: rows, by hook point."""

    tokens: int = 0
    rows: int = 0
    special: int = 0
    nonfinite: int = 0
    norm_above_limit: int = 0
    large_norms: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Shard:
    name: str
    bytes: int
    sha256: str
    first_sequence: int
    sequences: int
    counts: Counts

    @functools.cached_property
    def line(self) -> str:
        """As it is written. A shard never changes, and a manifest of thousands is written once for each."""
        return json.dumps(dataclasses.asdict(self))


@dataclasses.dataclass
class Manifest:
    """`identity` is what determines the rows; a store is never used by a configuration with another one.

    `sequences` were asked for; a text that ends earlier gives fewer. `median_norms` are those of the first rows, from which
    norms are judged. `widths` has the hook points in order.
    """

    identity: dict[str, Any]
    widths: dict[str, int]
    dtype: str
    context_length: int
    special_ids: list[int]
    sequences: int
    shard_sequences: int
    forward_batch_size: int
    median_norms: dict[str, float] | None = None
    shards: list[Shard] = dataclasses.field(default_factory=list)
    statistics_sha256: str | None = None
    complete: bool = False
    schema: int = SCHEMA

    @property
    def is_of_images(self) -> bool:
        """Whether a sequence is an image, and an id the number of a position: of a class token, a register or a patch."""
        return any("images" in source for source in [self.identity, *self.identity.get("texts", [])])

    @property
    def counts(self) -> Counts:
        return total(shard.counts for shard in self.shards)

    @property
    def share(self) -> Share:
        """Which of the sequences that were asked for it is to hold: all, where it is no part."""
        share = self.identity.get(SHARE)
        return Share(0, self.sequences, self.sequences) if share is None else Share(**share)

    def shards_expected(self) -> int:
        return -(-self.sequences // self.shard_sequences)

    def write(self, folder: Path) -> None:
        """Shards come last, a line each."""
        own = dataclasses.asdict(dataclasses.replace(self, shards=[]))
        del own["shards"]
        head = json.dumps(
            {"schema": self.schema} | own | {"counts": dataclasses.asdict(self.counts)}, indent=2, allow_nan=False
        ).removesuffix("\n}")
        shards = ",\n    ".join(shard.line for shard in self.shards)
        write_text(folder / MANIFEST, f'{head},\n  "shards": [\n    {shards}\n  ]\n}}\n')


def read_manifest(folder: Path) -> Manifest:
    """Errors: InputError for a folder that is no store, and for one of a later version of this package."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{folder} is no activation store: {MANIFEST} cannot be read ({error.strerror}); check data.store") from error
    return parsed(content, folder, f"delete the folder {folder}, the next run harvests it again")


def parsed(manifest: bytes, folder: Path | str, remedy: str) -> Manifest:
    """`folder`, `remedy`: where it was read, and what to do where it is damaged. Errors: InputError for that, and for a later version."""
    try:
        content = json.loads(manifest)
        schema = content["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            raise InputError(f"{folder} has schema version {schema}, this package reads up to {SCHEMA}: update sae_lightning to read it")
        shards = [Shard(**shard | {"counts": Counts(**shard["counts"])}) for shard in content.pop("shards")]
        del content["counts"]  # their total is for other readers
        made = Manifest(**content, shards=shards)
        _ = DTYPES[made.dtype]
        return made
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/{MANIFEST} is damaged: {remedy}") from error


def with_share(identity: dict[str, Any], share: Share) -> dict[str, Any]:
    """That of a part of what a whole's identity is of, or of the whole itself."""
    return identity if share.is_whole else identity | {SHARE: share._asdict()}


def without_share(identity: dict[str, Any]) -> dict[str, Any]:
    """That of the whole."""
    return {key: value for key, value in identity.items() if key != SHARE}


def check_hook(hook: str, widths: dict[str, int], where: object) -> None:
    """Errors: InputError for a hook point that is not in a store."""
    if hook not in widths:
        raise InputError(f"hook point '{hook}' is not in {where}: it holds {', '.join(widths)}; set data.hook to one of them")


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    result = Counts()
    for each in counts:
        for field in ("tokens", "rows", "special", "nonfinite", "norm_above_limit"):
            setattr(result, field, getattr(result, field) + getattr(each, field))
        for hook, n in each.large_norms.items():
            result.large_norms[hook] = result.large_norms.get(hook, 0) + n
    return result


def scale_key(hook: str) -> str:
    """Name of the tensor of a shard that holds the scale of each row at a hook point [N] float32, where rows are int8."""
    return f"scale.{hook}"


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"
