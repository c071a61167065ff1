"""Images from folders and data sets, and the stores that vision encoders make of them."""

import io
import re
import shutil
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.testing import assert_close

from sae_lightning.data.command import main
from sae_lightning.data.image_harvest import ImageHarvest
from sae_lightning.data.images import HubImages, ImageFolder, PhotoCrops, Picture, opened
from sae_lightning.data.sources import cached, harvested, of_images
from sae_lightning.data.store import Store
from sae_lightning.errors import InputError
from sae_lightning.evaluation.positions import Positions
from sae_lightning.transformers.vision import HuggingFaceVision
from tests.data.tiny import RandomText, TinyLlama, files
from tests.evaluation.conftest import sae  # noqa: F401 (a fixture)
from tests.transformers.tiny_vision import LAYERS, PATCHES, D, picture, save_pictures, save_tiny

NAMES = [f"class {i % 3}/{'<b>' if i == 4 else 'n'}{i}.{'PNG' if i % 2 else 'webp'}" for i in range(20)]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HuggingFaceVision]:
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: HuggingFaceVision(str(save_tiny(kind, folder / kind))) for kind in ("dinov2", "registers", "siglip")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "photos"
    save_pictures(folder, NAMES)
    (folder / "class 0" / "notes.txt").write_text("no image")
    return folder


def harvest(encoder: HuggingFaceVision, images: Any, stores: Path, **settings: Any) -> ImageHarvest:
    defaults = {"max_images": 20, "dtype": "float32", "shard_rows": 128, "forward_batch_size": 4}
    return ImageHarvest(encoder, images, stores=stores, **{**defaults, **settings})


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_rows_are_the_activations_at_patches(kind: str, class_token: bool, encoders, photos: Path, tmp_path: Path):
    from transformers import AutoModel

    encoder, hooks = encoders[kind], [f"{LAYERS[kind]}.0", f"{LAYERS[kind]}.1.mlp:in"]
    store = harvest(encoder, ImageFolder(str(photos)), tmp_path, hooks=hooks, class_token=class_token).ensure()
    plain, found = AutoModel.from_pretrained(encoder.path), {}
    plain.get_submodule(hooks[0]).register_forward_hook(lambda _, __, out: found.update({hooks[0]: out}))
    plain.get_submodule(hooks[1][:-3]).register_forward_pre_hook(lambda _, args: found.update({hooks[1]: args[0]}))
    images = [opened(file) for file in ImageFolder(str(photos)).files(0)]
    with torch.no_grad():
        plain(pixel_values=encoder.processor()(images=images, return_tensors="pt")["pixel_values"])
    rows = PATCHES + class_token
    assert (store.rows, store.sequences) == (20 * rows, 20)
    registers = 4 if kind == "registers" else 0
    positions = [0] * class_token + list(range(1 + registers, 1 + registers + PATCHES))
    for hook in hooks:
        assert_close(store.read(hook, 0, store.rows).float(), found[hook][:, positions].reshape(-1, D), rtol=1e-5, atol=1e-6)
    assert store.manifest.is_of_images
    assert store.manifest.special_ids == list(range(int(class_token), 1 + registers))
    assert store.has_row([7])[0].nonzero()[:, 0].tolist() == positions
    assert store.tokens([3])[0].tolist() == list(range(1 + registers + PATCHES))


class Stopped(Exception):
    pass


class Breaking(ImageFolder):
    """Whose reading ends after some images, as by a signal."""

    left = 14

    def pictures(self, numbers: Iterator[int], seed: int) -> Iterator[Picture]:
        for found in super().pictures(numbers, seed):
            if self.left == 0:
                raise Stopped
            self.left -= 1
            yield found


def test_a_broken_harvest_goes_on_where_it_stopped(encoders, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 50)  # so that shards are written early
    whole = harvest(encoders["dinov2"], ImageFolder(str(photos)), tmp_path / "whole").ensure()
    with pytest.raises(Stopped):
        harvest(encoders["dinov2"], Breaking(str(photos)), tmp_path / "broken").ensure()
    broken = harvest(encoders["dinov2"], Breaking(str(photos)), tmp_path / "broken")
    assert broken.path.name == whole.path.name
    assert 0 < len(list(broken.path.glob("shard-*"))) < len(list(whole.path.glob("shard-*")))
    assert files(broken.ensure().path) == files(whole.path)  # and no more than 14 images were read for it


def test_fewer_images_than_asked_for_are_said(encoders, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert harvest(encoders["dinov2"], ImageFolder(str(photos)), tmp_path, max_images=50).ensure().sequences == 20
    assert "the images ended after 20 of 50 images" in caplog.text


# -- sources ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_an_order_of_the_seed(photos: Path, tmp_path: Path):
    images = ImageFolder(str(photos))
    orders = [[str(file.relative_to(photos)) for file in images.files(seed)] for seed in (0, 0, 1)]
    assert sorted(orders[0]) == sorted(NAMES)
    assert orders[0] == orders[1] != orders[2]
    found = list(images.pictures(iter([2, 5, 99]), 0))
    assert [each.title for each in found] == [orders[0][2], orders[0][5]]
    seed = NAMES.index(found[0].title)
    if found[0].title.endswith("PNG"):
        assert found[0].image.tobytes() == picture(seed, 40, 36).tobytes()
    moved = shutil.copytree(photos, tmp_path / "photos")
    assert ImageFolder(str(moved)).identity(20, 0) == images.identity(20, 0)
    assert images.identity(3, 0) != images.identity(20, 0) != images.identity(20, 1)
    picture(77).save(moved / orders[0][0], "png")
    assert ImageFolder(str(moved)).identity(20, 0) != images.identity(20, 0)


def _bytes(image: Image.Image, kind: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("is_feature", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_is_read_in_its_own_order(is_feature: bool, streaming: bool, tmp_path: Path):
    """The image before those that are wanted is broken: it is passed over, and not decoded."""
    encoded = [b"broken", *(_bytes(picture(i)) for i in range(1, 6))]
    if is_feature:
        import datasets

        rows = {"picture": [{"bytes": each, "path": None} for each in encoded]}
        datasets.Dataset.from_dict(rows, features=datasets.Features({"picture": datasets.Image()})).to_parquet(
            tmp_path / "set/train.parquet"
        )
    else:
        (tmp_path / "set").mkdir()
        parquet.write_table(pa.table({"picture": encoded}), tmp_path / "set/train.parquet")
    images = HubImages(str(tmp_path / "set"), column="picture", streaming=streaming)
    found = list(images.pictures(iter([1, 4, 5, 9]), 0))
    assert [each.title for each in found] == ["row 1", "row 4", "row 5"]
    assert [each.image.tobytes() for each in found] == [picture(i).tobytes() for i in (1, 4, 5)]
    with pytest.raises(InputError, match=r"^cannot read row 0 of data set '.*set' \(it is no image that Pillow knows\)"):
        images.check(1, 0)
    with pytest.raises(InputError, match=r"has no column 'image': it has picture$"):
        HubImages(str(tmp_path / "set"), streaming=streaming).check(1, 0)


def test_a_data_set_and_a_folder_of_the_same_images_give_the_same_rows(encoders, photos: Path, tmp_path: Path):
    folder = ImageFolder(str(photos))
    (tmp_path / "set").mkdir()
    parquet.write_table(pa.table({"image": [file.read_bytes() for file in folder.files(0)]}), tmp_path / "set/train.parquet")
    stores = [harvest(encoders["dinov2"], images, tmp_path).ensure() for images in (folder, HubImages(str(tmp_path / "set")))]
    assert stores[0].path != stores[1].path
    hook = stores[0].hooks[0]
    assert_close(stores[0].read(hook, 0, 320).values, stores[1].read(hook, 0, 320).values, rtol=0, atol=0)


def test_crops_of_photographs():
    crops = PhotoCrops()
    crops.check(5, 0)
    some = list(islice(crops.pictures(count(0), 0), 40))
    assert all(each.image.width == each.image.height and 128 <= each.image.width <= 512 for each in some)
    assert {each.title.split(",")[0] for each in some} == {"china", "flower", "grace_hopper"}
    assert 8 < sum(each.title.endswith("mirrored") for each in some) < 32
    assert [each.title for each in crops.pictures(iter([7, 30]), 0)] == [some[7].title, some[30].title]
    assert next(crops.pictures(iter([0]), 1)).title != some[0].title


def test_every_kind_of_image_becomes_rgb(tmp_path: Path):
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    half.paste((0, 0, 200, 255), (0, 0, 2, 4))
    assert opened(_bytes(half)).getpixel((3, 0)) == (255, 255, 255)  # transparent is white, whatever colour lies below
    assert opened(_bytes(half)).getpixel((0, 0)) == (0, 0, 200)
    palette = half.quantize(4)
    assert opened(_bytes(palette)).getpixel((3, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
    assert opened(_bytes(grey)).getpixel((0, 0)) == (7, 7, 7)
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    file = io.BytesIO()
    turned.save(file, "jpeg", exif=exif)
    assert opened(file.getvalue()).size == (4, 6)


# -- rows of images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(encoders, photos: Path, tmp_path: Path):
    def make(**settings: Any):
        made = of_images(encoders["dinov2"], ImageFolder(str(photos)), str(tmp_path), 32, **{"max_images": 20, **settings})
        made.prepare_data()
        made.setup()
        return made

    return make


@pytest.mark.parametrize("class_token", [False, True])
def test_images_are_counted_and_no_tokens(class_token: bool, data):
    rows = data(class_token=class_token)
    rows.batches_trained = 17
    assert rows.numbers()["images"] == 17 * 32 / (PATCHES + class_token)
    assert rows.transformer is None
    with pytest.raises(InputError, match=r"has no tokens: its rows are of images$"):
        rows.tokens_held_out(1)
    with pytest.raises(InputError, match=r"has no tokens: its rows are of images$"):
        rows.tokens_train(0, 1)
    numbers, has_row = rows.images_held_out()
    assert has_row.sum(1).tolist() == [PATCHES + class_token] * len(numbers)
    assert sum(len(batch.x) for batch in rows.held_out()) == int(has_row.sum())
    seen = list(rows.pictured.at(numbers.tolist()))
    files, path = rows.pictured.images.files(0), rows.pictured.images.path
    assert [each.title for each in seen] == [files[i].relative_to(path).as_posix() for i in numbers]


def test_a_store_of_images_is_one_for_itself(data, sae, tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    """It is cached rows without tokens, mixed, cut, joined and described as others are."""
    path = data().store.path
    again = cached(str(path), 32)
    again.setup()
    again.batches_trained = 3
    assert again.numbers()["images"] == 6
    mixed = cached([str(path), str(data(class_token=True).store.path)], 64, weights=[1, 1])
    mixed.setup()
    mixed.batches_trained = 2
    assert mixed.numbers()["images"] == pytest.approx(64 / 16 + 64 / 17)
    with pytest.raises(InputError, match="has no tokens"):
        mixed.tokens_held_out(2)
    assert Positions()(sae(torch.randn(8, D)), again) == {}
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "20 of 17 positions" in said
    assert re.search(r"^images +images .*folder.*20", said, re.MULTILINE)
    assert not re.search(r"\btokens\b", said)
    shards = harvest_of_small_shards(data, tmp_path)
    assert main(["split", str(shards), "--parts", "2", "--to", str(tmp_path / "cut")]) == 0
    assert main(["merge", str(tmp_path / "cut/part-00001"), str(tmp_path / "cut/part-00000"), "--to", str(tmp_path / "joined")]) == 0
    assert Store(tmp_path / "joined").identity == Store(shards).identity
    other = data(harvest_seed=1).store.path
    assert main(["merge", str(path), str(other), "--to", str(tmp_path / "two")]) == 0
    assert Store(tmp_path / "two").manifest.is_of_images


def harvest_of_small_shards(data, tmp_path: Path) -> Path:
    return data(shard_rows=128, forward_batch_size=4, dtype="float32").store.path


def test_several_hook_points(encoders, photos: Path, tmp_path: Path):
    pair = of_images(encoders["dinov2"], ImageFolder(str(photos)), str(tmp_path), 32, views="pair", max_images=20)
    assert pair.hooks == (("encoder.layer.0.mlp:in",), ("encoder.layer.0.mlp",))
    stack = of_images(
        encoders["dinov2"], ImageFolder(str(photos)), str(tmp_path), 32, views="stack", hooks=["encoder.layer.0", "encoder.layer.1"]
    )
    assert stack.shape.x == (D, D)


def _unreadable(photos: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / NAMES[3]).write_bytes(b"\x89PNG\r\n")
    return folder


def _truncated(photos: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(photos, tmp_path / "photos")
    whole = (folder / NAMES[3]).read_bytes()
    (folder / NAMES[3]).write_bytes(whole[: len(whole) // 2])
    return folder


def _empty(photos: Path, tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (_unreadable, r"cannot read image '.*class 0/n3\.PNG' \(.+\): take it out, or replace it$"),
        (_truncated, r"cannot read image '.*class 0/n3\.PNG' \(.*truncated.*\): take it out, or replace it$"),
        (_empty, r"no images in folder '.*empty': it has no file that ends in \.png, "),
        (lambda _, tmp_path: tmp_path / "nowhere", "no images at '.*nowhere': it is no folder; set data.images.path$"),
    ],
)
def test_images_that_cannot_be_are_refused_in_one_line(folder, said: str, encoders, photos: Path, tmp_path: Path):
    with pytest.raises(InputError, match=said) as error:
        harvest(encoders["dinov2"], ImageFolder(str(folder(photos, tmp_path))), tmp_path / "stores").ensure()
    assert "\n" not in str(error.value)


def test_what_reads_something_else_is_refused_in_one_line(encoders, data, photos: Path, tmp_path: Path):
    images, stores, encoder = ImageFolder(str(photos)), str(tmp_path), encoders["dinov2"]
    with pytest.raises(InputError, match=r"^'tiny' reads text, and these are images: set data/transformer to dinov2_small or hf_vision$"):
        of_images(TinyLlama(), images, stores, 32)
    with pytest.raises(InputError, match=r"^'dinov2' reads images, and this is a text: set data/transformer to a language model"):
        harvested(encoder, RandomText(), stores, 32)
    path = str(data().store.path)
    with pytest.raises(InputError, match=r"is of images, which 'tiny' does not read: leave out data/transformer$"):
        cached(path, 32, transformer=TinyLlama())
    with pytest.raises(InputError, match=r"'dinov2' reads images, and nothing is evaluated inside it: leave out data/transformer$"):
        cached(path, 32, transformer=encoder)
    with pytest.raises(InputError, match=r"^data\.class_token=true, and 'siglip' has no class token: set it to false$"):
        _ = of_images(encoders["siglip"], images, stores, 32, class_token=True).shape
    with pytest.raises(InputError, match=r"^data\.max_images is 0: give a positive number$"):
        of_images(encoder, images, stores, 32, max_images=0)
    with pytest.raises(InputError, match=r"less than one batch of data\.batch_size=512: harvest more images \(data\.max_images\)"):
        of_images(encoder, images, stores, 512, max_images=20).setup()
