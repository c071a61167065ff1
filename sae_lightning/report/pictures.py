"""On the page of a run: images that latents are active on, and at which of their patches."""

import base64
import io
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae_lightning.data.order import numbers
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.report import features
from sae_lightning.report.page import PER_CHUNK, packed

SIDE, QUALITY = 176, 80
"""Of a thumbnail: pixels of its longer side, and JPEG's quality."""
BYTES = 18_000_000
"""Of all thumbnails; rows of images beyond it are not shown."""
SHADED = 3_000_000
"""Patches that are shaded, of all images of all latents together; of each image the strongest ones."""
NO_PATCH = 0xFFFF
log = logging.getLogger(__name__)


class Thumbnail(NamedTuple):
    jpeg: bytes
    title: str


class Peaks(NamedTuple):
    """For each latent and image with an active row, in their order: entries `first`[i] to `first`[i + 1] of an `Active`."""

    first: Int[np.ndarray, " n_and_one"]
    latent: Int[np.ndarray, " n"]
    image: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]
    entry: Int[np.ndarray, " n"]
    """The largest of them, and which one it is."""


class Shown(NamedTuple):
    """What goes into the page: for its script, thumbnails (base64), and what is decoded when a latent is looked at."""

    told: dict[str, Any]
    thumbnails: list[str]
    chunks: list[str]


def pictures(
    data: RowsDataModule, found: features.Active, latents: Int[np.ndarray, " m"], largest: Float[np.ndarray, " d_sae"]
) -> Shown | None:
    """The most active images of each latent, and some of each quarter of the others; None for rows of no images, or of unknown ones."""
    if data.pictured is None:
        return None
    image_numbers, has_row = data.images_held_out()
    where = features.placed(image_numbers.numpy()[:, None].repeat(has_row.shape[1], 1), has_row.numpy(), found.rows)
    try:
        made = thumbnails(data, image_numbers.tolist()[: int(where.sequence[-1]) + 1])
    except InputError as error:
        log.warning("the page is without pictures: %s", error)
        return None
    grid = data.pictured.encoder.grid
    found = only(found, where.sequence[found.row] < len(made))
    patch = where.position[found.row] - grid.first_patch
    of_image = peaks(found, where.sequence[found.row])
    starts = np.searchsorted(of_image.latent, np.arange(len(found.starts)))
    each = features.Active(starts, np.arange(len(of_image.latent)), of_image.value, found.rows)
    chosen, owner, kind = features.chosen(each, latents)
    used, own = np.unique(of_image.image[chosen], return_inverse=True)
    shaded, count = strongest(found, of_image, chosen, patch >= 0, max(1, SHADED // max(1, len(chosen))))
    shade = np.ceil(255 * found.value[shaded] / largest[np.repeat(latents[owner], count)]).clip(0, 255)
    at = np.where(patch < 0, NO_PATCH, patch)
    of_context = [(own, "<u2"), (at[of_image.entry[chosen]], "<u2"), (of_image.value[chosen], "<f4"), (kind, "<u1"), (count, "<u2")]
    told = {
        "rows": grid.rows, "columns": grid.columns, "none": NO_PATCH, "images": len(made), "titles": [made[i].title for i in used],
        "starts": packed(np.append(0, np.bincount(owner, minlength=len(latents)).cumsum()), "<u4"), "per_chunk": PER_CHUNK,
        "active_on": packed(np.diff(starts)[latents], "<u4"), "chunk": ["u2", "u2", "f4", "u1", "u2", "u2", "u1"],
    }  # fmt: skip
    bounds = np.searchsorted(owner, [*range(0, len(latents), PER_CHUNK), len(latents)])
    chunks = list(_chunks(of_context, [(at[shaded], "<u2"), (shade, "<u1")], bounds, np.append(0, np.cumsum(count))[bounds]))
    return Shown(told, [base64.b64encode(made[i].jpeg).decode() for i in used], chunks)


def _chunks(
    of_context: list[tuple[np.ndarray, str]], of_patch: list[tuple[np.ndarray, str]], contexts: np.ndarray, patches: np.ndarray
) -> Iterator[str]:
    """What has an entry per context, and what has one per shaded patch, cut at these numbers of them."""
    for i in range(len(contexts) - 1):
        parts = [packed(values[contexts[i] : contexts[i + 1]], kind) for values, kind in of_context]
        parts += [packed(values[patches[i] : patches[i + 1]], kind) for values, kind in of_patch]
        yield " ".join(text for _, text in parts)


def thumbnails(data: RowsDataModule, image_numbers: list[int]) -> list[Thumbnail]:
    """Of images as the encoder sees them: the first ones, so many that they have at most `BYTES`. Errors: InputError, as `Pictured.at`."""
    made, size = [], 0
    for image, title in data.pictured.at(image_numbers):
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        size += len(file.getvalue())
        if size > BYTES or len(made) == NO_PATCH:
            log.warning(
                "the page shows the first %d of %d images that it has rows of: more would make it too large", len(made), len(image_numbers)
            )
            break
        made.append(Thumbnail(file.getvalue(), title))
    return made


def only(found: features.Active, kept: np.ndarray) -> features.Active:
    """Some of the entries."""
    before = np.append(0, np.cumsum(kept))
    return features.Active(before[found.starts], found.row[kept], found.value[kept], found.rows)


def peaks(found: features.Active, image: Int[np.ndarray, " n"]) -> Peaks:
    """`image`: of each entry; ascending within a latent."""
    latent = found.latent
    begins = np.append(True, (np.diff(latent) != 0) | (np.diff(image) != 0))[: len(latent)]
    first = np.flatnonzero(begins)
    value = np.maximum.reduceat(found.value, first) if len(first) else found.value
    group = np.cumsum(begins) - 1
    is_largest = np.flatnonzero(found.value == value[group])
    _, one = np.unique(group[is_largest], return_index=True)
    return Peaks(np.append(first, len(latent)), latent[first], image[first], value, is_largest[one])


def strongest(
    found: features.Active, of: Peaks, chosen: Int[np.ndarray, " m"], usable: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Entries of each of the `chosen` pairs of latent and image: the `most` largest of those that are usable; and how many they are."""
    entries = numbers(of.first[chosen], np.diff(of.first)[chosen])
    owner = np.repeat(np.arange(len(chosen)), np.diff(of.first)[chosen])
    entries, owner = entries[usable[entries]], owner[usable[entries]]
    order = np.lexsort([-found.value[entries], owner])
    entries, owner = entries[order], owner[order]
    count = np.bincount(owner, minlength=len(chosen))
    rank = np.arange(len(entries)) - np.repeat(np.cumsum(count) - count, count)
    return entries[rank < most], np.minimum(count, most)
