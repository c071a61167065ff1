"""Shards that safetensors wrote, tensors named by hook points."""

import json
from pathlib import Path

import torch
from torch import Tensor

from sae_lightning.data.foreign.mapped import mapped, tensor_in
from sae_lightning.errors import InputError

DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
"""Names of the format (huggingface.co/docs/safetensors)."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name, mapped. Errors: InputError for a file that is none, or cut short.

    The safetensors package maps a file for writing, which the system refuses for one larger than the memory: so its header is read here.
    """
    memory = mapped(path)
    try:
        start = 8 + int.from_bytes(memory[:8].numpy().tobytes(), "little")
        if start > len(memory):
            raise ValueError(f"its header ends at byte {start} of {len(memory)}")
        header = json.loads(memory[8:start].numpy().tobytes())
        header.pop("__metadata__", None)
        return {
            name: tensor_in(memory, start + entry["data_offsets"][0], DTYPES[entry["dtype"]], entry["shape"])
            for name, entry in header.items()
            if entry["dtype"] in DTYPES
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no safetensors file, or it was cut short ({error}): write it again") from error
