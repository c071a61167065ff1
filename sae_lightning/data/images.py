"""Where images come from."""

import abc
import contextlib
import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sae_lightning.data.hub_rows import HubRows, folder_name, one_line
from sae_lightning.data.rows import generator
from sae_lightning.errors import InputError
from sae_lightning.transformers.fingerprint import fingerprint
from sae_lightning.transformers.hub import first_line
from sae_lightning.transformers.vision import VisionEncoder

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Picture(NamedTuple):
    """An RGB image, and what to call it."""

    image: "Image"
    title: str


class Images(abc.ABC):
    """Numbered images: which one has which number depends on a seed alone. `name` is for folder names."""

    name: str

    @abc.abstractmethod
    def identity(self, n: int, seed: int) -> dict[str, Any]:
        """JSON-able: all that determines the first n images. Errors: InputError, as `check`."""

    @abc.abstractmethod
    def check(self, n: int, seed: int) -> None:
        """Looks at the first n images without decoding them, where that costs little. Errors: InputError (none there, no network, …)."""

    @abc.abstractmethod
    def pictures(self, numbers: Iterator[int], seed: int) -> Iterator[Picture]:
        """Those with these ascending numbers, until there are no more. Errors: InputError, which names an image that cannot be read."""

    def sequences(self, transformer: VisionEncoder, context_length: int, start: int, seed: int) -> Iterator["Image"]:
        """Images number `start`, start + 1, … until there are no more. A pure function of its arguments. Errors: as `pictures`."""
        return (picture.image for picture in self.pictures(itertools.count(start), seed))

    def without_rows(self, context_length: int) -> str:
        """What is wrong when none of them gives a row."""
        return f"the images '{self.name}' give no row: give more, or others"


class Pictured(NamedTuple):
    """The images that rows came from, to look at them again. `seed`: of their numbers."""

    encoder: VisionEncoder
    images: Images
    seed: int

    def at(self, numbers: Sequence[int]) -> Iterator[Picture]:
        """Those with these ascending numbers, as the encoder sees them. Errors: as `Images.pictures`."""
        for picture in self.images.pictures(iter(numbers), self.seed):
            yield Picture(self.encoder.as_seen([picture.image])[0], picture.title)


class ImageFolder(Images):
    """The image files below a folder (.png, .jpg, .webp, …), in an order drawn with the seed: any number of them is a fair sample.

    Of an animation the first picture counts, and a photograph stands as its camera was held.
    """

    def __init__(self, path: str):
        self.path = Path(path).expanduser()
        self.name = folder_name(self.path.resolve().name)

    def identity(self, n: int, seed: int) -> dict[str, Any]:
        """What is in the files, wherever the folder lies. All n are read where this process has not done so before."""
        digest = hashlib.sha256()
        files = self.files(seed)[:n]
        for file in files:
            digest.update(f"{file.relative_to(self.path).as_posix()}\0{fingerprint(file)}\0".encode("utf-8", "surrogateescape"))
        return {"images": "folder", "files": len(files), "sha256": digest.hexdigest()}

    def check(self, n: int, seed: int) -> None:
        for file in self.files(seed)[:n]:
            with _naming(f"image '{file}'"), _image_file(file):
                pass

    def pictures(self, numbers: Iterator[int], seed: int) -> Iterator[Picture]:
        files = self.files(seed)
        for number in numbers:
            if number >= len(files):
                return
            yield Picture(opened(files[number]), files[number].relative_to(self.path).as_posix())

    def files(self, seed: int) -> list[Path]:
        """Errors: InputError for a folder that is none, or has no image in it."""
        order = torch.randperm(len(self._files), generator=generator(seed, "images"))
        return [self._files[i] for i in order.tolist()]

    @cached_property
    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            raise InputError(f"no images at '{self.path}': it is no folder; set data.images.path")
        found = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise InputError(f"no images in folder '{self.path}': it has no file that ends in {', '.join(SUFFIXES)}; set data.images.path")
        return found


class HubImages(HubRows, Images):
    """A data set of the Hugging Face hub, or a folder of .parquet files or images in the hub's layout, in its own order: see `HubRows`.

    `column` holds the image: one of `datasets`' images, or the bytes of an image file.
    """

    instead = "set data/images=folder and name one"

    def __init__(self, name: str, config: str | None = None, split: str = "train", column: str = "image", streaming: bool = True,
                 revision: str | None = None):  # fmt: skip
        super().__init__(name, config, split, column, streaming, revision)

    def identity(self, n: int, seed: int) -> dict[str, Any]:
        return {"images": "hub", **self.where(), "config": self.config, "split": self.split, "column": self.column}

    def check(self, n: int, seed: int) -> None:
        """Opens the data set and looks at its first image."""
        if next(self.pictures(iter([0]), seed), None) is None:
            raise InputError(f"data set '{self.path}' has no rows in split '{self.split}'")

    def pictures(self, numbers: Iterator[int], seed: int) -> Iterator[Picture]:
        wanted = next(numbers, None)
        if wanted is None:
            return
        first = wanted
        with one_line(f"data set '{self.path}'"):
            for number, value in enumerate(self.values(self._encoded().skip(first)), first):
                if number == wanted:
                    where = f"row {number} of data set '{self.path}'"
                    yield Picture(opened(_bytes(value, f"column '{self.column}', {where},"), where), f"row {number}")
                    wanted = next(numbers, None)
                    if wanted is None:
                        return

    def _encoded(self) -> Any:
        """With images as the bytes of their files: what is passed over is not decoded, nor are other columns."""
        from datasets import Image

        rows = self.open()
        if rows.features is None:
            return rows
        self.check_column(rows.features)
        rows = rows.select_columns([self.column])
        return rows.cast_column(self.column, Image(decode=False)) if isinstance(rows.features[self.column], Image) else rows


class PhotoCrops(Images):
    """Square crops of three photographs that come with packages: two of scikit-learn's (china, flower), one of matplotlib's (grace_hopper).

    Image i is drawn with (seed, i): the photograph, the side (from 3/10 of the shorter one to all of it), the place, and whether it is
    mirrored. Without end.
    """

    name = "photo_crops"

    def identity(self, n: int, seed: int) -> dict[str, Any]:
        return {"images": "photo_crops", "files": [[file.name, fingerprint(file)] for file in self._files]}

    def check(self, n: int, seed: int) -> None:
        _ = self._files

    def pictures(self, numbers: Iterator[int], seed: int) -> Iterator[Picture]:
        from PIL import ImageOps

        photos = [(file.stem, opened(file)) for file in self._files]
        for number in numbers:
            which, side, x, y, mirrored = torch.rand(5, generator=generator(seed, "crop", number), dtype=torch.float64).tolist()
            name, photo = photos[int(which * len(photos))]
            edge = round(min(photo.size) * (0.3 + 0.7 * side))
            left, top = round(x * (photo.width - edge)), round(y * (photo.height - edge))
            crop = photo.crop((left, top, left + edge, top + edge))
            title = f"{name}, {edge} × {edge} pixels at {left}, {top}"
            yield Picture(ImageOps.mirror(crop), f"{title}, mirrored") if mirrored < 0.5 else Picture(crop, title)

    @cached_property
    def _files(self) -> list[Path]:
        try:
            import sklearn.datasets
        except ImportError as error:
            raise InputError(
                "the photographs come with scikit-learn: pip install 'sae_lightning[demo]', or set data/images=folder"
            ) from error
        import matplotlib

        of_sklearn = Path(sklearn.datasets.__file__).parent / "images"
        files = [of_sklearn / "china.jpg", of_sklearn / "flower.jpg", Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is missing, which its package should bring: install it anew, or set data/images=folder")
        return files


def opened(file: "Path | bytes", where: str | None = None) -> "Image":
    """A decoded RGB image, transparent parts white. Errors: InputError, which says where it is (None: in that file)."""
    from PIL import Image, ImageOps

    with _naming(where or f"image '{file}'"), _image_file(file) as image:
        upright = ImageOps.exif_transpose(image)
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _image_file(file: "Path | bytes") -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any decoder
        what = "it is no image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else first_line(error)
        raise InputError(f"cannot read {where} ({what}): take it out, or replace it") from error


def _bytes(value: Any, where: str) -> bytes:
    """Of an image file, from how data sets hold one."""
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        return Path(value["path"]).read_bytes()
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise InputError(f"{where} holds no image but {type(found).__name__}: set data.images.column")
    return found
