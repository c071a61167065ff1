"""Which share of a whole a part of it holds, and where it lies."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_lightning.data.manifest import Share
from sae_lightning.errors import InputError


class Numbered(NamedTuple):
    """Part number `part` (from 0) of `parts`."""

    part: int
    parts: int


def check_part(part: int | None, parts: int) -> None:
    """Errors: InputError for a part that there is not, and for no parts at all."""
    if parts < 1:
        raise InputError(f"data.parts is {parts}: give a positive number")
    if part is not None and not 0 <= part < parts:
        raise InputError(f"data.part={part} is none of data.parts={parts}: give 0 to {parts - 1}")


def cut(sequences: int, shard_sequences: int, part: int, parts: int) -> Share:
    """Whole shards, as many as any other part has or one more. Errors: as `check_part`, and for more parts than shards."""
    check_part(part, parts)
    shards = -(-sequences // shard_sequences)
    if parts > shards:
        raise InputError(
            f"data.parts={parts} is more than the {shards} shards that there will be, and a part is whole shards: lower data.parts, or data.shard_rows"
        )
    chosen = np.array_split(np.arange(shards), parts)[part].tolist()
    return Share(chosen[0] * shard_sequences, min((chosen[-1] + 1) * shard_sequences, sequences), sequences)


def folder_of_part(whole: Path, part: int, parts: int) -> Path:
    return folder_of_parts(whole) / f"part-{part:05d}-of-{parts:05d}"


def folder_of_parts(whole: Path) -> Path:
    """Of a store that is harvested in parts: where those lie."""
    return whole.with_name(f"{whole.name}.parts")


def number_of(folder: Path) -> Numbered | None:
    """Which part of how many a folder is named as; None for any other name."""
    found = re.fullmatch(r"part-(\d+)-of-(\d+)", folder.name)
    return None if found is None else Numbered(*map(int, found.groups()))


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers, neighbours together: 0-3, 7, 9-10."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and groups[-1][-1] == number - 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)
