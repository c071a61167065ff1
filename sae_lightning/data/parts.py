"""Joining activation stores and cutting them, by their manifests: shards stay as they are and are linked, or copied to another disk."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_lightning.data.manifest import SCHEMA, SHARE, STAMPS, Manifest, Share, shard_name, with_share, without_share
from sae_lightning.data.shares import folder_of_parts, number_of, ranges
from sae_lightning.data.store import Store, stamp
from sae_lightning.data.writer import StoreWriter
from sae_lightning.errors import InputError
from sae_lightning.files import is_disk_full, replacing, sync_folder, write_json

OF_TEXT = ("text", "images", "seed", "sequences")
"""What an identity says about the text that was read, or the images; all else of it must be equal in stores that are joined."""
TEXTS = "texts"
"""What the identity of a joined store has instead: one entry for each text."""


def merge(folders: Sequence[Path], to: Path) -> Store:
    """Joins complete stores into a new one in the folder `to`, which appears whole or not at all.

    Parts of a whole come in their order, whatever the order given; parts that are all there make the whole again, with the identity,
    the rows and the statistics that it had. Stores of different texts follow one another as given. The norms that
    the first store's rows were judged by (`median_norms`) are the new store's; counts of large norms add up as they were made.

    Errors: InputError for stores of another transformer, other hook points, context length, dtype or exclusions; for parts that overlap
    or leave a gap; for less than all parts where `to` is the place of the whole; for stores that hold rows of the same text and seed and
    are not parts of one whole; for `to` that is there already.
    """
    if len(folders) < 2:
        raise InputError("merge joins two stores or more: name them")
    with appearing(to) as temporary:
        groups = _grouped([Store(folder) for folder in folders])
        _check_place(groups, to)
        stores = [store for group in groups for store in group]
        first = stores[0].manifest
        shards = [(store.path / shard.name, shard) for store in stores for shard in store.manifest.shards]
        manifest = dataclasses.replace(
            first,
            identity=_joined_identity(groups),
            sequences=sum(share.stop - share.first for share in map(_share, stores)),
            shards=[dataclasses.replace(shard, name=shard_name(i)) for i, (_, shard) in enumerate(shards)],
            schema=SCHEMA,
        )
        if SHARE not in manifest.identity and TEXTS not in manifest.identity:
            manifest.sequences = manifest.identity.get("sequences", manifest.sequences)  # asked for: a text may have ended before
        _write([(temporary, manifest, [path for path, _ in shards])])
    return Store(to)


def split(folder: Path, parts: int, to: Path) -> list[Store]:
    """Cuts a complete store at shard boundaries into the stores `to`/part-00000 …, which appear together or not at all.

    Each has statistics of its own rows; the norms that rows were judged by (`median_norms`) are those of the whole.
    Errors: InputError for more parts than shards, for a part without rows, and for `to` that is there already.
    """
    with appearing(to) as temporary:
        store = Store(folder)
        manifest, (start, stop, of) = store.manifest, _share(store)
        if not 1 <= parts <= len(manifest.shards):
            raise InputError(
                f"{folder} has {len(manifest.shards)} shards: it can be cut into 1 to {len(manifest.shards)} parts, not {parts}"
            )
        pieces = []
        for i, chosen in enumerate(np.array_split(np.arange(len(manifest.shards)), parts)):
            shards = [manifest.shards[j] for j in chosen]
            sequences = sum(shard.sequences for shard in shards)
            if not sum(shard.counts.rows for shard in shards):
                raise InputError(f"part {i} of {folder} would have no rows: cut it into fewer parts")
            part = dataclasses.replace(
                manifest,
                identity=with_share(without_share(manifest.identity), Share(start, stop if i == parts - 1 else start + sequences, of)),
                sequences=sequences,
                shards=[dataclasses.replace(shard, name=shard_name(j)) for j, shard in enumerate(shards)],
                schema=SCHEMA,
            )
            pieces.append((temporary / f"part-{i:05d}", part, [store.path / shard.name for shard in shards]))
            start += sequences
        _write(pieces)
    return [Store(to / path.name) for path, _, _ in pieces]


# -- what goes with what ------------------------------------------------------------------------------------------------


def _grouped(stores: list[Store]) -> list[list[Store]]:
    """Parts of one whole together and in their order; wholes in the order given. Errors: InputError, as `merge`."""
    groups: dict[str, list[Store]] = {}
    for store in stores:
        _check_compatible(stores[0], store)
        groups.setdefault(json.dumps(_texts_of(without_share(store.identity)), sort_keys=True), []).append(store)
    for group in groups.values():
        group.sort(key=_share)
        for a, b in itertools.pairwise(group):
            if _share(a).of != _share(b).of or _share(a).stop > _share(b).first:
                raise InputError(f"{a.path} and {b.path} overlap: {described(a)} and {described(b)}; leave one of them out")
            if _share(a).stop < _share(b).first:
                gap = f"sequences {_share(a).stop} to {_share(b).first - 1} are in none"
                raise InputError(
                    f"there is a gap between {a.path} and {b.path}: {gap}; {_missing(group) or 'name the part that holds them'}"
                )
    for a, b in itertools.combinations(stores, 2):
        if {shard.sha256 for shard in a.manifest.shards} & {shard.sha256 for shard in b.manifest.shards}:
            raise InputError(f"{a.path} and {b.path} hold the same rows: leave one of them out")
    for a, b in itertools.combinations(groups.values(), 2):
        common = _sources(a[0].identity) & _sources(b[0].identity)
        if common:
            raise InputError(f"{a[0].path} and {b[0].path} both hold rows of {common.pop()} and are not parts of one store: leave one out")
    return list(groups.values())


def _check_place(groups: list[list[Store]], to: Path) -> None:
    """Errors: InputError where some parts would take the place at which a run looks for all of them."""
    for group in groups:
        share = _joined_share(group)
        if not share.is_whole and any(store.path.absolute().parent == folder_of_parts(to.absolute()) for store in group):
            raise InputError(
                f"{to} is the place of all {share.of} sequences, and these are {share.first} to {share.stop - 1}: "
                f"{_missing(group) or 'name the other parts'}; or join these in another folder (--to)"
            )


def _missing(group: list[Store]) -> str:
    """Which of the parts that folders are named as is not among them; empty where that cannot be known."""
    numbers = [number_of(store.path.absolute()) for store in group]
    found = [number for number in numbers if number is not None]
    parts = {number.parts for number in found}
    if len(found) < len(group) or len(parts) != 1:
        return ""
    (of,) = parts
    lost = sorted(set(range(of)) - {number.part for number in found})
    which = f"parts {ranges(lost)} of {of} are" if len(lost) > 1 else f"part {lost[0]} of {of} is"
    again = ",".join(map(str, lost))
    return f"{which} missing: name what is there, harvest what is not (python -m sae_lightning.data.harvest -m … data.part={again} data.parts={of})"


def _check_compatible(a: Store, b: Store) -> None:
    def facts(store: Store) -> dict[str, Any]:
        manifest = store.manifest
        identity = {key: value for key, value in manifest.identity.items() if key not in (*OF_TEXT, TEXTS, SHARE)}
        return identity | {"hooks": manifest.widths, "special tokens": manifest.special_ids, "dtype": manifest.dtype}

    of_a, of_b = facts(a), facts(b)
    for key in of_a | of_b:
        if of_a.get(key) != of_b.get(key):
            raise InputError(
                f"{b.path} cannot be joined to {a.path}, its {key.replace('_', ' ')} differs: {json.dumps(of_b.get(key))} instead of "
                f"{json.dumps(of_a.get(key))}"
            )


def _joined_identity(groups: list[list[Store]]) -> dict[str, Any]:
    whole = [without_share(group[0].identity) for group in groups]
    shares = [_joined_share(group) for group in groups]
    if len(groups) == 1:
        return with_share(whole[0], shares[0])
    texts = []
    for identity, share, group in zip(whole, shares, groups, strict=True):
        if TEXTS in identity and not share.is_whole:
            raise InputError(f"{group[0].path} is a part of a store of several texts: merge it with the other parts first")
        texts += [text if TEXTS in identity else with_share(text, share) for text in _texts_of(identity)]
    common = {key: value for key, value in whole[0].items() if key not in (*OF_TEXT, TEXTS)}
    return common | {TEXTS: texts}


def _texts_of(identity: dict[str, Any]) -> list[dict[str, Any]]:
    return identity.get(TEXTS) or [{key: identity[key] for key in OF_TEXT if key in identity}]


def _sources(identity: dict[str, Any]) -> set[str]:
    """Texts and seeds, as JSON."""
    return {
        json.dumps({key: text[key] for key in ("text", "images", "seed") if key in text}, sort_keys=True) for text in _texts_of(identity)
    }


def _share(store: Store) -> Share:
    share = store.identity.get(SHARE)
    return Share(0, store.sequences, store.sequences) if share is None else Share(**share)


def _joined_share(group: Sequence[Store]) -> Share:
    """Of stores that follow one another."""
    return Share(_share(group[0]).first, _share(group[-1]).stop, _share(group[0]).of)


def described(store: Store) -> str:
    """Which sequences of its whole it holds."""
    share = _share(store)
    return f"sequences {share.first} to {share.stop - 1} of {share.of}"


# -- files --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def appearing(to: Path) -> Iterator[Path]:
    """Yields a new folder beside `to` that becomes `to` when the block ends well, and is removed when it does not.

    Errors: InputError for `to` that is there already, a folder that cannot be written into, a full disk.
    """
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise InputError(f"{to} is there already: give another folder with --to")
    temporary = to.absolute().with_name(f".{to.absolute().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, to)
        sync_folder(temporary.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error.__cause__ or error):
            raise InputError(f"the disk of {to} is full: free some space and start again; nothing was written, nothing is lost") from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"cannot write {to} ({error.strerror}): give a folder of yours with --to") from error
        raise


def _write(pieces: list[tuple[Path, Manifest, list[Path]]]) -> None:
    """Makes stores of (folder, manifest, where its shards are now)."""
    pairs = []
    for folder, manifest, sources in pieces:
        folder.mkdir(exist_ok=True)
        pairs += zip(sources, [folder / shard.name for shard in manifest.shards], strict=True)
    linked = _place(pairs)
    for folder, manifest, _ in pieces:
        if linked:  # the same files, which were checked when the stores were opened; copies are checked by the writer
            write_json(folder / STAMPS, {shard.name: stamp(folder / shard.name, shard.sha256) for shard in manifest.shards})
        StoreWriter(folder, manifest).finish()


def _place(pairs: list[tuple[Path, Path]]) -> bool:
    """Links files (source, target); copies them where that is not possible, and says so by False."""
    try:
        for source, target in pairs:
            os.link(source.resolve(), target)
        return True
    except OSError as error:
        if is_disk_full(error):
            raise
    folder = pairs[0][1].parent
    needed, free = sum(source.stat().st_size for source, _ in pairs), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the shards need {needed / 1e6:.0f} MB on that disk and {free / 1e6:.0f} MB are free: free some space or give another folder with --to"
        )
    for source, target in pairs:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    return False
