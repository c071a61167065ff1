"""Vision encoders of two layers with random weights and an image processor, as folders; and small pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

D, PIXELS, PATCH = 16, 32, 8
PATCHES = (PIXELS // PATCH) ** 2
SMALL: dict[str, Any] = {
    "hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": PIXELS, "patch_size": PATCH,
}  # fmt: skip
LAYERS = {"vit": "layers", "dinov2": "encoder.layer", "registers": "encoder.layer", "clip": "encoder.layers", "siglip": "encoder.layers"}
"""Where the layers of each kind are."""


def save_tiny(kind: str, folder: Path, seed: int = 0, **processor: Any) -> Path:
    """`kind`: one of LAYERS; clip and siglip are whole, with their text encoders. `processor`: changed settings of it."""
    import transformers as T

    text = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    make = {
        "vit": lambda: T.ViTModel(T.ViTConfig(**SMALL)),
        "dinov2": lambda: T.Dinov2Model(T.Dinov2Config(**SMALL)),
        "registers": lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=4)),
        "clip": lambda: T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=SMALL)),
        "siglip": lambda: T.SiglipModel(T.SiglipConfig(text_config=text, vision_config=SMALL)),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make[kind]()
        for name, parameter in model.named_parameters():
            if "position" in name or "token" in name:  # zeros at first, by which neither place nor kind could be told
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": PIXELS},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": PIXELS, "width": PIXELS}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | processor))
    return folder


def picture(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save_pictures(folder: Path, names: list[str]) -> None:
    """One for each name, drawn with its place as the seed; two shapes take turns."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, *((40, 36) if seed % 2 else (33, 50))).save(path)
