"""Images on the page of a run, in a browser: the right ones, the right patch, whatever their files are called."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_lightning.data.images import ImageFolder
from sae_lightning.data.sources import of_images
from sae_lightning.transformers.vision import HuggingFaceVision
from tests.evaluation.conftest import sae  # noqa: F401 (a fixture)
from tests.report.test_run_page import looked
from tests.transformers.tiny_vision import PATCHES, PIXELS, D, save_pictures, save_tiny

NAMES = [
    "<img src=x onerror=window.hacked=1>.png",
    "<script>window.hacked=2;<!--.png",
    "'\"`{{hacked}}.png",
    *(f"{i}.png" for i in range(57)),
]
LATENTS, COLUMNS = 20, 4


@pytest.fixture
def data(tmp_path: Path):
    save_pictures(tmp_path / "photos", NAMES)
    encoder = HuggingFaceVision(str(save_tiny("registers", tmp_path / "encoder")))
    made = of_images(
        encoder,
        ImageFolder(str(tmp_path / "photos")),
        str(tmp_path),
        7,
        max_images=60,
        class_token=True,
        dtype="float32",
        validation_rows=400,
    )
    made.prepare_data()
    made.setup()
    made.parts.validation = torch.arange(len(NAMES))  # all of them are shown
    made.parts.validation_rows = torch.arange(len(NAMES) * (1 + PATCHES))
    return made


@pytest.fixture
def some(sae):  # noqa: F811
    g = torch.Generator().manual_seed(1)
    made = sae(torch.randn(LATENTS, D, generator=g))
    made.b_enc[:] = -2 * torch.rand(LATENTS, generator=g)
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


SEEN = """
    const contexts = () => $$("#contexts .seen").map(e => { const i = e.querySelector("i"); return {
      value: +e.querySelector("b").innerText, title: e.title, about: e.querySelector("figcaption span").innerText, wide: e.querySelector("img").naturalWidth,
      at: i ? [parseFloat(i.style.top), parseFloat(i.style.left)] : null,
      alpha: [...e.querySelector("canvas").getContext("2d").getImageData(0, 0, 4, 4).data].filter((_, k) => k % 4 === 3) }; });
    seen.top = contexts(); seen.heading = text("#latent h3").at(-1); $$(".tabs button")[4].click(); seen.weak = contexts(); $$(".tabs button")[0].click();
    document.querySelector(".tabs input").click(); seen.shades = $$("#contexts canvas").filter(c => c.offsetHeight).length;
    seen.titles = []; for (const latent of LATENTS) { location.hash = "latent=" + latent; await wait(40); seen.titles.push(...contexts().map(c => c.title)); }
    seen.placeholder = document.getElementById("search").placeholder; seen.files = $$("script.picture").length;
"""


def test_the_most_active_images_with_their_patch(data, some, run: Path):
    """Whatever files are called: `looked` fails where a script of theirs ran."""
    from sae_lightning.report.run_page import Page

    page = Page()(some, data, {"sae": {"mse": 0.5}}, run, run)
    numbers, _ = data.images_held_out()
    rows = torch.cat([batch.x for batch in data.held_out()])
    active = some.encode(rows).dense().view(len(numbers), 1 + PATCHES, LATENTS)  # the class token first
    files = data.pictured.images.files(0)
    latent = int((active.argmax(1) > 0).float().mean(0).argmax())  # often most active at a patch, sometimes at the class token
    best = active.amax(1).sort(dim=0, descending=True, stable=True).indices[:10]  # [10, latents]: images
    hostile = [[files[i].name for i in numbers].index(name) for name in NAMES[:3]]
    shows = [int((best == image).any(0).nonzero()[0]) for image in hostile]
    seen = looked(page, SEEN.replace("LATENTS", str(shows)), hash_=f"#latent={latent}")

    assert set(NAMES[:3]) <= set(seen["titles"])
    largest, where = active[..., latent].max(1)
    order = largest.argsort(descending=True, stable=True)
    assert len(seen["top"]) == 10
    assert seen["heading"] == f"images that it is active on: {int((largest > 0).sum())} of {len(numbers)}"
    for shown, image in zip(seen["top"], order.tolist(), strict=False):
        assert shown["value"] == pytest.approx(float(largest[image]), rel=5e-3)
        assert shown["title"] == files[numbers[image]].name
        assert shown["wide"] == PIXELS
        patch = int(where[image]) - 1
        assert shown["at"] == (None if patch < 0 else [100 * (patch // COLUMNS) / 4, 100 * (patch % COLUMNS) / 4])
        assert shown["about"] == ("class token" if patch < 0 else shown["title"])
        shade = torch.ceil(255 * active[image, 1:, latent] / active[..., latent].max())
        assert shown["alpha"] == pytest.approx((165 * (1 - shade / 255)).tolist(), abs=1.01)
    assert all(each["value"] <= seen["top"][-1]["value"] for each in seen["weak"])
    assert seen["shades"] == 0
    assert seen["placeholder"] == "a latent's number"
    assert seen["files"] <= len(numbers)


def test_the_page_stays_small(data, some, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """As many images as fit; of each the strongest patches."""
    from sae_lightning.report import pictures as module
    from sae_lightning.report.features import active

    found = active(some, data, 1 << 20)
    latents = np.flatnonzero(np.diff(found.starts))
    largest = np.array([found.value[a:b].max(initial=0) for a, b in zip(found.starts, found.starts[1:], strict=False)])

    def made() -> Any:
        shown = module.pictures(data, found, latents, largest)
        assert shown is not None
        return shown

    whole = made()
    monkeypatch.setattr(module, "BYTES", 6 * max(len(thumbnail) * 3 // 4 for thumbnail in whole.thumbnails))
    monkeypatch.setattr(module, "SHADED", 1)
    small = made()
    assert 6 <= len(small.thumbnails) <= small.told["images"] < whole.told["images"]
    assert f"the page shows the first {small.told['images']} of" in caplog.text
    assert sum(map(len, small.chunks)) < sum(map(len, whole.chunks)) / 2


def test_images_that_are_gone_are_left_out(data, some, run: Path, caplog: pytest.LogCaptureFixture):
    from sae_lightning.report.run_page import Page

    for file in data.pictured.images.files(0):
        file.unlink()
    page = Page()(some, data, {"sae": {"mse": 0.5}}, run, run)
    assert "the page is without pictures: cannot read image" in caplog.text
    assert 'class="picture"' not in page.read_text()
