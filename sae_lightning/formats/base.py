"""What one writes for another format: a file beside this one, with one final class."""

import abc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.formats.files import FLOATS
from sae_lightning.inference import InferenceSAE
from sae_lightning.shapes import Float


class Format(abc.ABC):
    """How another library keeps an SAE on disk. `name` is its module's."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @abc.abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a folder, or a file, holds an SAE of this format; looks at names alone."""

    @abc.abstractmethod
    def read(self, path: Path) -> InferenceSAE:
        """The same function, in raw space. Nothing in the files is run. Errors: InputError, one line."""

    @abc.abstractmethod
    def refusal(self, sae: InferenceSAE) -> str | None:
        """Why it cannot hold this SAE, as the end of "… cannot hold this SAE: "; None where it can."""

    @abc.abstractmethod
    def write(self, sae: InferenceSAE, folder: Path, density: Float[Tensor, " d_sae"] | None = None) -> str:
        """Writes what `read` and the library read; returns what it is called there. Asked only where there is no `refusal`.

        density: share of rows in which each latent fires, where that is known. Errors: InputError when the disk is full.
        """

    @abc.abstractmethod
    def usage(self, repository: str, folder: str) -> str:
        """Python code by which the library loads what `write` left in a folder of a repository on the Hugging Face hub."""

    def density(self, path: Path) -> Float[Tensor, " d_sae"] | None:
        """What `write` was told, where the format keeps it."""
        return None


def is_transcoder(sae: InferenceSAE) -> bool:
    """Whether it predicts other rows than it sees, by what is known of it and by its form."""
    return sae.about.get("views") == "pair" or sae.W_skip is not None or sae.W_enc.shape[1] != sae.W_dec.shape[1]


def is_relu(sae: InferenceSAE) -> bool:
    """Whether f = relu(h)."""
    return sae.k is None and sae.threshold is not None and not bool(sae.threshold.any())


def of_no_other(sae: InferenceSAE) -> str | None:
    """The reason, where no other library has such SAEs."""
    if sae.about.get("views") == "stack":
        return "it is a crosscoder, of several hook points at once"
    if sae.cap is not None:
        return f"its latents are capped at {sae.cap:g}: train it with model.cap=null"
    return None


def checked(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by our names and axes when they fit together: all float32, or float64 where W_enc is. One θ becomes one per latent.

    r_mag, b_gate and b_mag [d_sae] may be among them. Errors: InputError for other shapes, NaN, and what is no number.
    """
    for name, weight in weights.items():
        if weight.dtype not in FLOATS or not weight.numel():
            raise InputError(f"{path}: {name} of shape {tuple(weight.shape)} and type {weight.dtype} is no weight of an SAE: copy it again")
    if (axes := [weights[name].ndim for name in ("W_enc", "W_dec")]) != [2, 2]:
        raise InputError(f"{path}: W_enc and W_dec have {axes[0]} and {axes[1]} axes, and not two each: copy it again")
    (d_sae, d_in), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    wanted = {"W_enc": (d_sae, d_in), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    dtype = torch.float64 if weights["W_enc"].dtype == torch.float64 else torch.float32
    found = {}
    for name, weight in weights.items():
        weight = weight.expand(d_sae) if name == "threshold" and weight.shape == () else weight
        if tuple(weight.shape) != wanted.get(name, (d_sae,)):
            shape = wanted.get(name, (d_sae,))
            raise InputError(f"{path}: {name} has shape {tuple(weight.shape)}, beside the others it should be {shape}: copy it again")
        if not bool((~weight.isnan() if name == "threshold" else weight.isfinite()).all()):
            raise InputError(f"{path}: {name} holds NaN or infinite numbers: it is no trained SAE")
        found[name] = weight.to(dtype)
    return found


def assembled(
    path: Path, weights: Mapping[str, Tensor], *, subtract: bool, k: Any = None, about: Mapping[str, Any], config: Mapping[str, Any]
) -> InferenceSAE:
    """The SAE of checked weights; a negative θ acts like 0. `config` is kept in about["imported"].

    Errors: InputError for a k that is none, and where b_dec is subtracted from rows of another width.
    """
    (d_sae, d_in), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
    if subtract and d_in != d_out:
        raise InputError(f"{path} subtracts b_dec of width {d_out} from rows of width {d_in}: its configuration is not of these weights")
    if "threshold" not in weights and not (type(k) is int and 1 <= k <= d_sae):
        raise InputError(f"{path} has k {str(k)[:40]} and {d_sae} latents: k must be a whole number from 1 to {d_sae}")
    made = {name: weight.clamp(min=0) if name == "threshold" else weight for name, weight in weights.items()}
    return InferenceSAE(made, subtract=subtract, k=k, about=dict(about) | {"imported": dict(config)})


def check_size(path: Path, sae: InferenceSAE, d_in: Any, d_sae: Any) -> None:
    """Errors: InputError where a configuration says another size than the weights have; None says nothing."""
    found = {"d_in": (d_in, sae.W_enc.shape[1]), "d_sae": (d_sae, sae.d_sae)}
    for name, (said, held) in found.items():
        if said is not None and said != held:
            raise InputError(
                f"{path}: the configuration says {name} {str(said)[:40]}, the weights have {held}: they are not of one SAE, copy it again"
            )


def hooks_known(path: Path, x: Any, y: Any = None) -> dict[str, Any]:
    """What `about` says of hook points: nothing where they are unknown. `y`: of a transcoder.

    Errors: InputError for a path in a file system, which no hook point is.
    """
    for hook in (x, y):
        if hook is not None and (not isinstance(hook, str) or "/" in hook or "\\" in hook or ".." in hook or len(hook) > 300):
            raise InputError(f"{path}: {str(hook)[:60]!r} is no name of a hook point: write the path of a module, like model.layers.3")
    return {} if not x else {"hook": x, "hooks": {"x": [x], "y": [y or x]}}


def layer_of(sae: InferenceSAE) -> int | None:
    """The number in its hook point's name."""
    found = re.search(r"(?<![\w])\d+(?![\w])", str(sae.about.get("hook") or ""))
    return None if found is None else int(found[0])


def hook_points(sae: InferenceSAE) -> str:
    """Its hook points, x before y, each once; empty where they are not known."""
    hooks = sae.about.get("hooks") or {}
    return " → ".join(dict.fromkeys([*hooks.get("x", []), *hooks.get("y", [])]))


def transformer_of(sae: InferenceSAE) -> str | None:
    """The name of the transformer, where it has one."""
    transformer = sae.about.get("transformer")
    name = transformer.get("name") if isinstance(transformer, Mapping) else None
    return name if isinstance(name, str) else None
