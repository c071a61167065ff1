"""Vision encoders against plain forward passes of transformers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.transformers.dinov2_small import DINOv2Small
from sae_lightning.transformers.hooks import read_inputs
from sae_lightning.transformers.vision import Grid, HuggingFaceVision
from tests.transformers.tiny_gpt2 import save_tiny_gpt2
from tests.transformers.tiny_vision import LAYERS, PATCH, PIXELS, D, picture, save_tiny

BEFORE = {"vit": (True, 0), "dinov2": (True, 0), "registers": (True, 4), "clip": (True, 0), "siglip": (False, 0)}


@pytest.mark.parametrize("kind", LAYERS)
def test_an_encoder_of_a_folder(kind: str, tmp_path: Path):
    """Described without weights; its activations are those of transformers' own class, hooked by hand."""
    from transformers import AutoModel

    encoder = HuggingFaceVision(str(save_tiny(kind, tmp_path)))
    first, second = (f"{LAYERS[kind]}.{i}" for i in range(2))
    assert encoder.hooks == [first]
    assert encoder.grid == Grid(4, 4, *BEFORE[kind])
    assert encoder.widths([first, f"{second}.mlp:in"]) == {first: D, f"{second}.mlp:in": D}
    assert encoder.mlp() == [f"{first}.mlp:in", f"{first}.mlp"]
    images = [picture(1), picture(2, 32, 60)]
    inputs = encoder.inputs(images)
    assert inputs.ids.tolist() == [list(range(encoder.grid.positions))] * 2
    found = read_inputs(encoder.load(), [first, second], inputs.ids.shape, inputs.named)

    whole = AutoModel.from_pretrained(tmp_path)
    tower, expected = getattr(whole, "vision_model", whole), {}
    for hook in (first, second):
        tower.get_submodule(hook).register_forward_hook(lambda _, __, out, hook=hook: expected.update({hook: out}))
    with torch.no_grad():
        tower(pixel_values=inputs.named["pixel_values"])
    for hook, activation in expected.items():
        assert_close(found[hook], activation if isinstance(activation, torch.Tensor) else activation[0], rtol=0, atol=0)


def test_pixels_are_prepared_as_its_processor_says(tmp_path: Path):
    encoder = HuggingFaceVision(str(save_tiny("vit", tmp_path, do_resize=False)))
    image = picture(3, PIXELS + 8, PIXELS + 4)
    middle = image.crop((4, 2, 4 + PIXELS, 2 + PIXELS))
    values = torch.from_numpy(np.array(middle)).double().permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]))
    assert_close(encoder.inputs([image]).named["pixel_values"][0], ((values - mean) / std).float(), rtol=0, atol=1e-5)
    assert encoder.as_seen([image])[0].tobytes() == middle.tobytes()


def test_patches_come_row_by_row_behind_class_token_and_registers(tmp_path: Path):
    """A patch of another colour changes the embedding at its own position, and no other."""
    encoder = HuggingFaceVision(str(save_tiny("registers", tmp_path)))
    plain = picture(4, PIXELS, PIXELS)
    spotted = plain.copy()
    spotted.paste((255, 0, 0), (3 * PATCH, PATCH, 4 * PATCH, 2 * PATCH))  # row 1, column 3
    model, inputs = encoder.load(), encoder.inputs([plain, spotted])
    rows = read_inputs(model, ["embeddings"], inputs.ids.shape, inputs.named)["embeddings"]
    assert (rows[0] != rows[1]).any(1).nonzero()[:, 0].tolist() == [1 + 4 + 1 * 4 + 3]


def test_which_positions_give_rows(tmp_path: Path):
    registers = HuggingFaceVision(str(save_tiny("registers", tmp_path / "registers")))
    assert registers.special_ids(with_class_token=False) == {0, 1, 2, 3, 4}
    assert registers.special_ids(with_class_token=True) == {1, 2, 3, 4}
    none = HuggingFaceVision(str(save_tiny("siglip", tmp_path / "siglip")))
    assert none.special_ids(with_class_token=False) == set()
    with pytest.raises(InputError, match=r"data\.class_token=true, and 'siglip' has no class token: set it to false$"):
        none.special_ids(with_class_token=True)


def test_of_a_whole_clip_the_vision_encoder_is_loaded_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = save_tiny("clip", tmp_path)
    capfd.readouterr()
    encoder = HuggingFaceVision(str(folder), dtype="bfloat16")
    inputs = encoder.inputs([picture(5)])
    found = read_inputs(encoder.load(), encoder.hooks, inputs.ids.shape, inputs.named)
    assert found["encoder.layers.0"].dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_its_processor_is_part_of_what_it_is(tmp_path: Path):
    folder = save_tiny("vit", tmp_path)
    before = HuggingFaceVision(str(folder)).identity()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0, 0, 0]}))
    assert HuggingFaceVision(str(folder)).identity() != before


def test_random_weights_are_drawn_anew(tmp_path: Path):
    folder = str(save_tiny("clip", tmp_path))
    weights = [HuggingFaceVision(folder, random_weights=seed).load().state_dict() for seed in (None, 0, 0, 1)]
    name = "encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert torch.equal(weights[1][name], weights[2][name])
    assert not torch.equal(weights[2][name], weights[3][name])


def _text(folder: Path) -> HuggingFaceVision:
    save_tiny_gpt2(folder)
    return HuggingFaceVision(str(folder))


def _without_processor(folder: Path) -> HuggingFaceVision:
    (save_tiny("vit", folder) / "preprocessor_config.json").unlink()
    return HuggingFaceVision(str(folder))


def _uncut(folder: Path) -> HuggingFaceVision:
    return HuggingFaceVision(str(save_tiny("vit", folder, do_center_crop=False)))


def _of_another_size(folder: Path) -> HuggingFaceVision:
    return HuggingFaceVision(str(save_tiny("vit", folder, crop_size={"height": 48, "width": 48}, size={"shortest_edge": 48})))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_text, r"\(gpt2\) reads no images: set data.transformer to a vision encoder"),
        (_without_processor, "cannot read the image processor of transformer"),
        (_uncut, "leaves images different sizes: let its preprocessor_config.json crop them"),
        (_of_another_size, "cannot read images as its processor makes them: .*48"),
        (lambda folder: HuggingFaceVision(str(folder / "nowhere")), "it has no config.json"),
    ],
)
def test_what_is_refused_is_one_line(make, said: str, tmp_path: Path):
    with pytest.raises(InputError, match=said) as error:
        _ = make(tmp_path).grid
    assert "\n" not in str(error.value)


def test_dinov2_small_is_described_without_being_fetched(tmp_path: Path):
    encoder = DINOv2Small(str(tmp_path / "cache"), hooks=["encoder.layer.5"])
    assert encoder.identity()["version"] == "0.1.1"
    assert encoder.hooks == ["encoder.layer.5"]
    assert not (tmp_path / "cache").exists()


# Slow: 90 MB to fetch.
@pytest.mark.slow
def test_dinov2_small_tells_a_flower_from_its_background():
    """Patches of one thing are alike: the flower's are nearer to each other than to those of the leaves behind it."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    encoder = DINOv2Small(os.environ["SAE_LIGHTNING_TEST_CACHE"])
    assert encoder.widths(["encoder.layer.5"]) == {"encoder.layer.5": 384}  # what a run asks first, before anything is fetched
    assert encoder.grid == Grid(16, 16, True, 0)
    assert encoder.hooks == ["encoder.layer.5"]
    assert {file.name for file in encoder.folder.iterdir()} == {"LICENSE", "config.json", "model.safetensors", "preprocessor_config.json"}
    flower = Image.fromarray(load_sample_images().images[1])
    inputs = encoder.inputs([flower])
    rows = read_inputs(encoder.load(), ["layernorm"], inputs.ids.shape, inputs.named)["layernorm"][0, 1:]
    unit = torch.nn.functional.normalize(rows - rows.mean(0), dim=1).view(16, 16, -1)
    petals, leaves = unit[6:10, 4:8].reshape(16, -1), unit[:2, 12:].reshape(8, -1)
    assert (petals @ petals.T).mean() > (petals @ leaves.T).mean() + 0.5
