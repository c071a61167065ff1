"""The SAE as one uses it: the one class that is exported, loaded, spliced, evaluated and converted. Needs torch and safetensors only."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.files import replacing, write_json
from sae_lightning.latents import Dense, Latents, PreActivations, Shaped
from sae_lightning.shapes import Bool, Float
from sae_lightning.transformers import hooks

FORMAT = "sae_lightning/1"
WEIGHTS = {"W_enc", "W_dec", "b_enc", "b_dec"}


class Fixed(NamedTuple):
    """Latents that have a given value in every row."""

    others: Float[Tensor, " d_sae"]
    """0 for them, 1 for all others."""
    decoded: Float[Tensor, " d_out"]
    """What they stand for together."""


class Spliced:
    """A model with an SAE in it. `latents`: those of its last forward pass, as they were encoded."""

    latents: Latents | None = None


class InferenceSAE(nn.Module):
    """Latents of a row, and the row that they stand for. Raw space in and out, every row on its own.

        h = W_enc (x − b_dec) + b_enc                     without b_dec where `subtract` is false
        f = the k largest of relu(h),  or  h ⟦h > θ⟧      (at most `cap`, where there is one)
        ŷ = f · W_dec + b_dec (+ W_skip x)

    W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc [d_sae], b_dec [d_out], threshold [d_sae] or k, W_skip [d_out, d_in] or none.
    `about` is what the exporter says of it: architecture, transformer, hook point, training rows, …

    Rows may stand in any number of axes, [d_in] to [batch, context, d_in] and more, and be of any floating type: everything is computed
    in the type of the weights (`sae.to(torch.bfloat16)` changes it), and ŷ is of the type of x.
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

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Latents:
        """Latents of rows, sparse or dense; `.dense()` gives [*rows, d_sae]. Errors: InputError for rows of another width."""
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"rows have width {x.shape[-1]}, and this SAE reads rows of width {self.d_in}: give it those it was trained on"
            )
        rows = x.reshape(-1, self.d_in).to(self.W_enc.dtype)
        h = PreActivations.of(rows - self.b_dec if self.subtract else rows, self.W_enc, self.b_enc, _form())
        if self.k is not None:
            f = h.top_k(self.k)
            values = f.values
        else:
            assert self.threshold is not None
            f = h.above(self.threshold)
            values = f.values * (f.values > f.at(self.threshold))
        f = f.with_values(values if self.cap is None else values.clamp(max=self.cap))
        return f if x.ndim == 2 else Shaped(f, x.shape[:-1])

    def decode(self, latents: Latents | Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_out"]:
        """The rows that latents stand for, in the type of the weights, without what W_skip adds."""
        if isinstance(latents, Tensor):
            latents = Shaped(Dense(latents.reshape(-1, self.d_sae).to(self.W_dec.dtype)), latents.shape[:-1])
        return latents.decode(self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return self.reconstruct(x, self.encode(x))

    def reconstruct(self, x: Float[Tensor, "*rows d_in"], latents: Latents, fixed: Fixed | None = None) -> Float[Tensor, "*rows d_out"]:
        """ŷ for rows whose latents are known; those that are `fixed` have their value there instead."""
        if fixed is not None:
            latents = latents.with_values(latents.values * latents.at(fixed.others))
        y_hat = self.decode(latents)
        if fixed is not None:
            y_hat = y_hat + fixed.decoded
        if self.W_skip is not None:
            y_hat = y_hat + x.to(self.W_skip.dtype) @ self.W_skip.T
        return y_hat.to(x.dtype)

    def fix(self, values: Mapping[int, float]) -> Fixed:
        """Latent → the value that it is to have in every row. Errors: InputError for a latent that this SAE has not."""
        if outside := [latent for latent in values if not 0 <= latent < self.d_sae]:
            raise InputError(f"there is no latent {outside[0]}: this SAE has {self.d_sae}, choose among 0 to {self.d_sae - 1}")
        others, at = torch.ones_like(self.b_enc), torch.tensor(list(values), dtype=torch.int64, device=self.b_enc.device)
        others[at] = 0
        return Fixed(others, self.W_dec.new_tensor(list(values.values())) @ self.W_dec[at])

    @contextlib.contextmanager
    def splice(self, model: nn.Module, hook: str | None = None, hook_out: str | None = None, *, ablate: Iterable[int] = (),
               steer: Mapping[int, float] | None = None, error: bool = False,
               special: Bool[Tensor, "*positions"] | None = None) -> Iterator[Spliced]:  # fmt: skip
        """While open, every forward pass of `model` goes on with ŷ in place of the activation y at `hook_out`, made of x at `hook`.

        A hook point is a module path, for its output, or one and ":in", for its input; names of TransformerLens will do
        (`transformers.hooks`). `hook_out` is `hook` where nothing else is said; without both they are those that the SAE was trained at.

        ablate: latents that are 0; steer: latent → the value that it has (which is not added to its own): both at every position.
        error: y − ŷ of the latents as they were is added, as a constant: then nothing changes but for the latents that are set, and
        gradients go through the latents alone. Without it the model goes on with what the SAE makes of y and nothing else.
        special: positions, in the shape of the activation without its last axis, that stay as they are.

        Gradients flow; everything compiled runs as plain PyTorch meanwhile. Errors: InputError for a hook point that does not exist, or
        of another width than the SAE's, for a latent that does not exist or is both ablated and steered; and for a crosscoder, which
        reads at all its hook points before it writes at the first (`transformers.predictions` has that in two forward passes).
        """
        hook, hook_out = self._places(hook, hook_out)
        zeros, steer = dict.fromkeys(map(int, ablate), 0.0), dict(steer or {})
        if both := zeros.keys() & steer.keys():
            raise InputError(f"latent {min(both)} is to be ablated and steered: choose one")
        fixed = self.fix(zeros | steer) if zeros or steer else None
        spliced, found = Spliced(), []

        def write(y: Tensor) -> Tensor:
            x = y if hook == hook_out else _read(found, hook, hook_out)
            if (x.shape[-1], y.shape[-1]) != (self.d_in, self.d_out):
                raise InputError(
                    f"'{hook}' gives rows of width {x.shape[-1]} and '{hook_out}' of {y.shape[-1]}, this SAE makes {self.d_out} of {self.d_in}:"
                    " choose its own hook points"
                )
            spliced.latents = self.encode(x)
            y_hat = self.reconstruct(x, spliced.latents, fixed)
            return y_hat + (y - self.reconstruct(x, spliced.latents)).detach() if error else y_hat

        with contextlib.ExitStack() as stack:
            if hook != hook_out:
                stack.enter_context(hooks.splice(model, hook, found.append, special))
            stack.enter_context(hooks.splice(model, hook_out, write, special))
            yield spliced

    def _places(self, hook: str | None, hook_out: str | None) -> tuple[str, str]:
        """Where x is read and y written."""
        known = self.about.get("hooks") or {"x": [], "y": []}
        if len(known["x"]) > 1:
            raise InputError(
                f"this SAE is a crosscoder of {len(known['x'])} hook points, which one forward pass cannot read before it writes at them: "
                "use sae_lightning.transformers.predictions.with_reconstructions"
            )
        if hook is None and hook_out is None:
            if not known["x"]:
                raise InputError("this SAE does not say where it was trained: name a hook point, sae.splice(model, hook)")
            return known["x"][0], known["y"][0]
        if hook is None or (hook_out is None and known["x"] != known["y"]):
            raise InputError("a transcoder is spliced in between two hook points: name both, sae.splice(model, hook, hook_out), or neither")
        return hook, hook if hook_out is None else hook_out

    def rescaled(
        self, s_in: Float[Tensor, " d_in"], s_out: Float[Tensor, " d_out"], unit: Float[Tensor, ""] | None = None
    ) -> "InferenceSAE":
        """The same function on rows s_in·x, giving s_out·ŷ and latents unit·f: from the space of training to raw space.

        `unit`: None is the scale of x, which must be one then. With one scale s for x, y and latents this is the usual folding: W_enc
        and W_dec stay, biases, θ and cap are multiplied by s.
        """
        factors = _factors(s_in, s_out, s_in[0] if unit is None else unit)
        weights = {name: weight * factors[name] for name, weight in self.named_buffers()}
        cap = None if self.cap is None else self.cap * float(factors["b_enc"])
        return InferenceSAE(weights, subtract=self.subtract, k=self.k, cap=cap, about=self.about)

    def rescale_(
        self, s_in: Float[Tensor, " d_in"], s_out: Float[Tensor, " d_out"], unit: Float[Tensor, ""] | None = None
    ) -> "InferenceSAE":
        """The same, in place: without a second copy of weights that nobody else has."""
        factors = _factors(s_in, s_out, s_in[0] if unit is None else unit)
        for name, weight in self.named_buffers():
            weight.mul_(factors[name])
        self.cap = None if self.cap is None else self.cap * float(factors["b_enc"])
        return self

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Writes sae.safetensors and sae.json into `folder` (each atomically, the json last); returns the folder.

        Errors: InputError when the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.cpu().contiguous() for name, weight in self.named_buffers()}
        description = {"format": FORMAT, "d_in": self.d_in, "d_out": self.d_out, "d_sae": self.d_sae,
                       "subtract": self.subtract, "k": self.k, "cap": self.cap, "about": self.about | dict(about or {})}  # fmt: skip
        with replacing(folder / "sae.safetensors") as temporary:
            save_file(weights, temporary)
        write_json(folder / "sae.json", description)
        return folder


def _factors(s_in: Tensor, s_out: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """What each weight is multiplied by when rows, reconstructions and latents are."""
    return {
        "W_enc": unit / s_in,
        "W_dec": s_out / unit,
        "b_enc": unit,
        "b_dec": s_out,
        "threshold": unit,
        "W_skip": s_out[:, None] / s_in,
    }


def _form() -> bool | None:
    """Whether latents are to be sparse. A graph of torch.compile is whole when they are not."""
    return False if torch.compiler.is_compiling() else None


def _read(found: list[Tensor], hook: str, hook_out: str) -> Tensor:
    if not found:
        raise InputError(f"the forward pass reaches '{hook_out}' before '{hook}': a transcoder goes the other way")
    return found.pop()


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
    k = description.get("k")
    if k is not None and not (type(k) is int and 1 <= k <= len(weights["b_enc"])):
        raise InputError(
            f"{folder}/sae.json says k {str(k)[:40]}, and there are {len(weights['b_enc'])} latents: export the run's SAE again"
        )
    if k is None and "threshold" not in weights:
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
