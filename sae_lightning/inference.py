"""The SAE as one uses it: the one class that is exported, loaded, evaluated and converted. Needs torch and safetensors only."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.files import replacing, write_json
from sae_lightning.latents import Dense, Latents, PreActivations

FORMAT = "sae_lightning/1"
WEIGHTS = {"W_enc", "W_dec", "b_enc", "b_dec"}


class InferenceSAE(nn.Module):
    """Latents of a row, and the row that they stand for. Raw space in and out, every row on its own.

        h = W_enc (x − b_dec) + b_enc                     without b_dec where `subtract` is false
        f = the k largest of relu(h),  or  h ⟦h > θ⟧      (at most `cap`, where there is one)
        ŷ = f · W_dec + b_dec (+ W_skip x)

    W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc [d_sae], b_dec [d_out], threshold [d_sae] or k, W_skip [d_out, d_in] or none.
    `about` is what the exporter says of it: architecture, transformer, hook point, training rows, …
    """

    W_enc: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " d_sae"] | None
    W_skip: Float[Tensor, "d_out d_in"] | None

    def __init__(self, weights: Mapping[str, Tensor], *, subtract: bool, k: int | None = None, cap: float | None = None,
                 about: Mapping[str, Any] | None = None):  # fmt: skip
        super().__init__()
        self.subtract, self.k, self.cap, self.about = subtract, k, cap, dict(about or {})
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"):
            weight = weights.get(name)
            self.register_buffer(name, None if weight is None else weight.detach().contiguous())
        if k is None and "threshold" not in weights:
            raise InputError("an SAE for inference needs `k` or a threshold per latent: neither is given")

    @property
    def d_sae(self) -> int:
        return len(self.b_enc)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Latents:
        """Latents of rows, sparse or dense; `.dense()` gives [batch, d_sae]."""
        h = PreActivations.of(x - self.b_dec if self.subtract else x, self.W_enc, self.b_enc)
        if self.k is not None:
            f = h.top_k(self.k)
            values = f.values
        else:
            assert self.threshold is not None
            f = h.above(self.threshold)
            values = f.values * (f.values > f.at(self.threshold))
        return f.with_values(values if self.cap is None else values.clamp(max=self.cap))

    def decode(self, latents: Latents | Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_out"]:
        """The rows that latents stand for, without what W_skip adds."""
        return (Dense(latents) if isinstance(latents, Tensor) else latents).decode(self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        return self.reconstruct(x, self.encode(x))

    def reconstruct(self, x: Float[Tensor, "batch d_in"], latents: Latents) -> Float[Tensor, "batch d_out"]:
        """ŷ for rows whose latents are known."""
        y_hat = self.decode(latents)
        return y_hat if self.W_skip is None else y_hat + x @ self.W_skip.T

    def rescaled(
        self, s_in: Float[Tensor, " d_in"], s_out: Float[Tensor, " d_out"], unit: Float[Tensor, ""] | None = None
    ) -> "InferenceSAE":
        """The same function on rows s_in·x, giving s_out·ŷ and latents unit·f: from the space of training to raw space.

        `unit`: None is the scale of x, which must be one then. With one scale s for x, y and latents this is the usual folding: W_enc
        and W_dec stay, biases, θ and cap are multiplied by s.
        """
        unit = s_in[0] if unit is None else unit
        weights = {
            "W_enc": self.W_enc * (unit / s_in),
            "b_enc": self.b_enc * unit,
            "W_dec": self.W_dec * (s_out / unit),
            "b_dec": self.b_dec * s_out,
        }
        if self.threshold is not None:
            weights["threshold"] = self.threshold * unit
        if self.W_skip is not None:
            weights["W_skip"] = self.W_skip * s_out[:, None] / s_in
        cap = None if self.cap is None else self.cap * float(unit)
        return InferenceSAE(weights, subtract=self.subtract, k=self.k, cap=cap, about=self.about)

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Writes sae.safetensors and sae.json into `folder` (each atomically, the json last); returns the folder.

        Errors: InputError when the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.cpu().contiguous() for name, weight in self.named_buffers()}
        description = {"format": FORMAT, "d_in": self.W_enc.shape[1], "d_out": self.W_dec.shape[1], "d_sae": self.d_sae,
                       "subtract": self.subtract, "k": self.k, "cap": self.cap, "about": self.about | dict(about or {})}  # fmt: skip
        with replacing(folder / "sae.safetensors") as temporary:
            save_file(weights, temporary)
        write_json(folder / "sae.json", description)
        return folder


def described(folder: str | Path) -> dict[str, Any]:
    """What sae.json says of the SAE that `save` wrote. Errors: InputError for anything else, naming what is wrong with it."""
    folder = Path(folder)
    try:
        description = json.loads((folder / "sae.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no sae.json: name the folder `sae` of a run") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/sae.json cannot be read ({error}): export the run's SAE again") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise InputError(f"{folder}/sae.json is of format {found!r}; this version reads {FORMAT!r}")
    return description


def read(folder: str | Path) -> InferenceSAE:
    """The SAE that `save` wrote. Errors: InputError for anything else, naming what is wrong with it."""
    folder, description = Path(folder), described(folder)
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(folder / "sae.safetensors", "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}/sae.safetensors cannot be read ({error}): copy or export it again") from None
    _check_shapes(folder, description, weights)
    with contextlib.suppress(KeyError):
        return InferenceSAE(
            weights, subtract=description["subtract"], k=description["k"], cap=description["cap"], about=description["about"]
        )
    raise InputError(f"{folder}/sae.json is incomplete: export the run's SAE again")


def _check_shapes(folder: Path, description: dict[str, Any], weights: dict[str, Tensor]) -> None:
    if missing := WEIGHTS - set(weights):
        raise InputError(f"{folder}/sae.safetensors holds no {', '.join(sorted(missing))}: export the run's SAE again")
    if description.get("k") is None and "threshold" not in weights:
        raise InputError(f"{folder} has neither k nor a threshold: export the run's SAE again")
    d_in, d_out, d_sae = (description.get(key) for key in ("d_in", "d_out", "d_sae"))
    wanted = {
        "W_enc": (d_sae, d_in),
        "W_dec": (d_sae, d_out),
        "b_enc": (d_sae,),
        "b_dec": (d_out,),
        "threshold": (d_sae,),
        "W_skip": (d_out, d_in),
    }
    for name, weight in weights.items():
        if name not in wanted or tuple(weight.shape) != wanted[name]:
            raise InputError(
                f"{folder}: {name} has shape {tuple(weight.shape)}, sae.json says {wanted.get(name)}: weights and description are not of one SAE"
            )
