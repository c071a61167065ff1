"""Vision encoders: what harvest and the page need of one, and any ViT, DINOv2 or CLIP of the Hugging Face hub."""

import abc
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.transformers.base import DTYPES, Inputs, Network
from sae_lightning.transformers.hub import first_line
from sae_lightning.transformers.huggingface import FromHub
from sae_lightning.transformers.packages import InPackage

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedConfig


class Grid(NamedTuple):
    """The positions of an encoder: the class token, where it has one, registers and the like, then patches, row by row."""

    rows: int
    columns: int
    has_class_token: bool
    registers: int

    @property
    def first_patch(self) -> int:
        return self.has_class_token + self.registers

    @property
    def positions(self) -> int:
        return self.first_patch + self.rows * self.columns


class VisionEncoder(Network):
    """A transformer that reads an image, cut into patches. All images are made one size, by its own processor."""

    @abc.abstractmethod
    def processor(self) -> Any:
        """What makes pixels of images: resized, cut, normalised. With Pillow, whatever else is installed. Errors: InputError, as `config`."""

    @staticmethod
    def made_by() -> Any:
        from transformers import AutoModel

        return AutoModel

    def pixels(self, images: Sequence["Image"]) -> Float[Tensor, "batch channels height width"]:
        """Of RGB images."""
        processor = self.processor()
        with _one_line(f"the image processor of '{self.name}' cannot prepare images"):
            return processor(images=list(images), return_tensors="pt")["pixel_values"]

    @functools.cached_property
    def size(self) -> torch.Size:
        """Height and width of every image as the encoder reads it, in pixels.

        Errors: InputError where its processor leaves images different sizes, and as `config`.
        """
        from PIL import Image

        wide, high = (self.pixels([Image.new("RGB", size)]) for size in ((320, 240), (240, 320)))
        if wide.ndim != 4 or wide.shape != high.shape:
            raise InputError(
                f"the image processor of '{self.name}' leaves images different sizes: let its preprocessor_config.json crop them"
            )
        return wide.shape[2:]

    @functools.cached_property
    def grid(self) -> Grid:
        """Errors: InputError for an encoder without patches of one size, for one that reads images of another size, and as `config`."""
        patch = getattr(self.config(), "patch_size", None)
        high, wide = (patch, patch) if isinstance(patch, int) else tuple(patch or (0, 0))
        if not high or not wide:
            raise InputError(f"'{self.name}' does not say how large its patches are: choose a ViT, such as DINOv2 or CLIP's")
        rows, columns = self.size[0] // high, self.size[1] // wide
        before = self._positions() - rows * columns
        registers = min(int(getattr(self.config(), "num_register_tokens", 0) or 0), before)
        if before < 0:
            raise InputError(f"'{self.name}' has fewer positions than patches: choose an encoder that keeps one for each patch")
        return Grid(rows, columns, before > registers, before - (before > registers))

    def special_ids(self, with_class_token: bool) -> set[int]:
        """The positions that give no row. Errors: InputError for a class token asked of an encoder without one."""
        if with_class_token and not self.grid.has_class_token:
            raise InputError(f"data.class_token=true, and '{self.name}' has no class token: set it to false")
        return set(range(int(with_class_token), self.grid.first_patch))

    def inputs(self, sequences: Sequence["Image"]) -> Inputs:
        """`ids` are the numbers of the positions."""
        ids = torch.arange(self.grid.positions).expand(len(sequences), -1)
        return Inputs(ids, {"pixel_values": self.pixels(sequences).to(DTYPES[self.dtype])})

    def shapes_of_inputs(self, device: torch.device) -> Inputs:
        ids = torch.zeros(2, self.grid.positions, dtype=torch.int64, device=device)
        return Inputs(ids, {"pixel_values": torch.zeros_like(self._no_pixels(), device=device)})

    def as_seen(self, images: Sequence["Image"]) -> list["Image"]:
        """What the encoder sees of RGB images: resized and cut."""
        from PIL import Image

        processor, pixels = self.processor(), self.pixels(images)
        if getattr(processor, "do_normalize", False):
            mean, std = (torch.tensor(getattr(processor, name))[:, None, None] for name in ("image_mean", "image_std"))
            pixels = pixels * std + mean
        if getattr(processor, "do_rescale", False):
            pixels = pixels / processor.rescale_factor
        values = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return [Image.fromarray(value.numpy().squeeze(2) if value.shape[2] == 1 else value.numpy()).convert("RGB") for value in values]

    def _no_pixels(self) -> Tensor:
        channels = getattr(self.config(), "num_channels", 3)
        return torch.zeros(2, channels, *self.size, dtype=torch.bfloat16, device="meta")

    def _positions(self) -> int:
        """How many its layers have for an image."""
        model, found = self.skeleton(), []
        layer = model.get_submodule(self._layers(model, [1 / 2])[0])
        layer.register_forward_hook(lambda _, __, output: found.append((output if isinstance(output, Tensor) else output[0]).shape))
        with _one_line(f"'{self.name}' cannot read images as its processor makes them"), torch.device("meta"), torch.no_grad():
            model(pixel_values=self._no_pixels())
        if not found or len(found[0]) != 3:
            raise InputError(f"'{self.name}' has no row for each patch [batch, patches, d]: choose a ViT, such as DINOv2 or CLIP's")
        return found[0][1]


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever an encoder is made of
        raise InputError(f"{what}: {first_line(error)}") from error


class HuggingFaceVision(FromHub, VisionEncoder):
    """A vision encoder with its image processor; of a model of images and texts, such as CLIP, the vision encoder alone. See `FromHub`."""

    unread = ("pooler.",)

    def config(self) -> "PreTrainedConfig":
        """Errors: InputError also for a model that reads no images."""
        whole: Any = super().config()
        config = getattr(whole, "vision_config", whole)
        if not hasattr(config, "image_size"):
            raise InputError(
                f"transformer '{self.path}' ({whole.model_type}) reads no images: set data.transformer to a vision encoder, such as DINOv2"
            )
        return config

    def processor(self) -> Any:
        return self._processor

    @functools.cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        with self._one_line("image processor"):
            return AutoImageProcessor.from_pretrained(self.path, backend="pil", **self._where())

    def _part(self) -> dict[str, Any]:
        return {"config": self.config()}

    def _load(self) -> nn.Module:
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()  # it would list the weights of a text encoder, which are not wanted
        try:
            return super()._load()
        finally:
            logging.set_verbosity(level)


class PackagedVision(InPackage, VisionEncoder):
    """A vision encoder in a package."""

    @staticmethod
    def reader() -> type[HuggingFaceVision]:
        return HuggingFaceVision

    def processor(self) -> Any:
        return self._converted().processor()
