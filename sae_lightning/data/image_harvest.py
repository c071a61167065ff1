"""Making an activation store of images: a vision encoder looks at them, what happens at its hook points is written down."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sae_lightning.data.harvest import Harvesting
from sae_lightning.data.images import Images
from sae_lightning.errors import InputError
from sae_lightning.transformers.vision import VisionEncoder


class ImageHarvest(Harvesting):
    """The store of a vision encoder's activations on the first `max_images` images; where there are fewer, that is said.

    A sequence of the store is an image, a token id the number of a position. Patches give rows, the class token with `class_token`,
    registers none. `shard_rows` and `forward_batch_size` (images), `dtype`, `on_nonfinite` and `exclude_norm_above`: as of `Harvest`.
    The folder is `<stores>/<encoder>-<images>-<hash of what determines the rows>`.

    Errors: InputError for settings that cannot be, when constructed.
    """

    unit, other, remedy = "images", "other images", "lower data.max_images"

    def __init__(
        self,
        encoder: VisionEncoder,
        images: Images,
        hooks: Sequence[str] | None = None,
        max_images: int = 1000,
        class_token: bool = False,
        dtype: str = "bfloat16",
        on_nonfinite: Literal["refuse", "skip"] = "refuse",
        exclude_norm_above: float | None = None,
        shard_rows: int = 32_768,
        forward_batch_size: int = 32,
        seed: int = 0,
        stores: str | Path = "stores",
    ):
        if max_images < 1:
            raise InputError(f"data.max_images is {max_images}: give a positive number")
        self.encoder, self.images, self.class_token = encoder, images, class_token
        super().__init__(
            encoder, images, encoder.hooks if hooks is None else hooks, max_images, dtype, on_nonfinite, exclude_norm_above, shard_rows,
            forward_batch_size, seed, stores,
        )  # fmt: skip

    @cached_property
    def identity(self) -> dict[str, Any]:
        excluded = {"special": True, "class_token": not self.class_token}
        identity = {
            "transformer": self.encoder.identity(),
            "hooks": self.hooks,
            "images": self.images.identity(self.sequences, self.seed),
            "sequences": self.sequences,
            "seed": self.seed,
            "dtype": self.dtype,
            "exclusions": {**excluded, "on_nonfinite": self.on_nonfinite, "norm_above": self.exclude_norm_above},
        }
        return json.loads(json.dumps(identity))

    @property
    def positions(self) -> int:
        return self.encoder.grid.positions

    def special_ids(self) -> set[int]:
        return self.encoder.special_ids(self.class_token)

    def check_source(self) -> None:
        _ = self.special_ids()
        self.images.check(self.sequences, self.seed)

    def amount(self, sequences: int) -> int:
        return sequences
