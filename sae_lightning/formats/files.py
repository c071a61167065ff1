"""Files of strangers: read without running, following or allocating anything that they say and do not hold."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sae_lightning.errors import InputError, in_a_line

LONGEST_JSON = 1 << 24
"""Bytes of a configuration."""
MOST_UNPACKED = 100
"""Times the size of a file: what it may unpack to."""
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def read_json(path: Path) -> dict[str, Any]:
    """A configuration, JSON-able again: NaN and infinity become text.

    No name in it is imported and no path in it is opened. Errors: InputError for what is missing, damaged, no mapping, longer than 16 MB,
    or asks for an object to be made (`_target_`).
    """
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes: a configuration has at most {LONGEST_JSON:,}")
        found = _plain(json.loads(path.read_text(encoding="utf-8")))
        target = _target(found)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: copy the whole folder") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({in_a_line(error)}): copy or write it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__} and no configuration: copy or write it again")
    if target is not None:
        raise InputError(f"{path} asks for an object to be made (_target_: {target!r}): nothing that a configuration names is ever run")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _target(value: Any) -> Any:
    """What the first `_target_` names; None where there is none."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"])[:100]
    return next((found for part in inner if (found := _target(part)) is not None), None)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Errors: InputError for one that is missing, damaged, or claims more than it holds."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: copy the whole folder") from None
    except Exception as error:  # of a library in another language, for any bytes
        raise InputError(f"{path} cannot be read ({in_a_line(error)}): copy it again") from None


def read_pickle(path: Path) -> dict[str, Any]:
    """The mapping that torch.save wrote: tensors, numbers, text, and mappings and lists of them; nothing else is unpickled.

    Errors: InputError for anything else, for a file of the format before PyTorch 1.6, and for a tensor larger than its file.
    """
    try:
        _check_archive(path)
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: copy the whole folder") from None
    except InputError:
        raise
    except Exception as error:  # an unpickler meets any bytes
        why = "objects, which are never run" if "weights_only" in str(error).lower() or "Unsupported" in str(error) else in_a_line(error)
        raise InputError(f"{path} is no plain file of torch.save ({why}): save its state_dict() alone") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__} and no state_dict(): save that")
    return {str(key): _in_memory(path, value) for key, value in found.items()}


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        if not path.is_file():
            raise FileNotFoundError(path)
        raise InputError(f"{path} is no archive as torch.save writes since PyTorch 1.6: save its state_dict() again")
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise InputError(f"{path} is a compressed archive, which torch.save does not write: save its state_dict() again")


def _in_memory(path: Path, value: Any) -> Any:
    """Copies of the tensors: the file may be replaced. One may be smaller than its storage, and not larger."""
    if isinstance(value, Mapping):
        return {str(key): _in_memory(path, inner) for key, inner in value.items()}
    if not isinstance(value, Tensor):
        return value
    is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not is_plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{path} claims a tensor of shape {tuple(value.shape)} that it does not hold: save its state_dict() again")
    return value.detach().clone()


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a .npz file by name. Errors: InputError for pickled ones, and for one that its file does not hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if sum(entry.file_size for entry in entries) > MOST_UNPACKED * path.stat().st_size:
                raise ValueError(f"it unpacks to more than {MOST_UNPACKED} times its size")
            found = {}
            for entry in entries:
                with archive.open(entry) as file:
                    assert isinstance(file, zipfile.ZipExtFile)
                    _check_header(file, entry)
                with archive.open(entry) as file:
                    found[entry.filename.removesuffix(".npy")] = torch.from_numpy(
                        np.ascontiguousarray(np.lib.format.read_array(file, allow_pickle=False))
                    )
            return found
    except FileNotFoundError:
        raise InputError(f"{path} is missing: copy the whole folder") from None
    except Exception as error:  # zip, numpy and its header meet any bytes
        raise InputError(f"{path} cannot be read as arrays of numbers ({in_a_line(error)}): copy it again") from None


def _check_header(file: zipfile.ZipExtFile, entry: zipfile.ZipInfo) -> None:
    """Errors: ValueError where an array is not as long as its header says, before anything is allocated."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds pickled objects, which are never run")
    if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
        raise ValueError(f"{entry.filename} claims shape {shape} and has {entry.file_size} bytes")
