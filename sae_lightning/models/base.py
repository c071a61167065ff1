"""All that one must read to write an architecture: what a step returns, and what an SAE answers while it is trained."""

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.latents import Latents, PreActivations
from sae_lightning.models.dictionary import Dictionary

MakeDictionary = Callable[..., Dictionary]
"""`Dictionary` with widths and size filled in; an architecture adds what it wants of it: `unit_norm`, `init_norm`, …"""


class Term(NamedTuple):
    """One term of the loss: logged plain as `train/<name>` and times its weight as `loss/<name>`."""

    value: Float[Tensor, ""]
    weight: float | Float[Tensor, ""] = 1.0


Revival = Callable[[Dictionary, PreActivations, Tensor], Mapping[str, Term]]
"""Loss terms that bring dead latents back: (dictionary, pre-activations, residual [batch, d_out]) → named terms."""


class Step(NamedTuple):
    """What one batch says. `sums` over rows come back, added up over the optimizer step and all ranks, in `after_step_`."""

    latents: Latents
    reconstruction: Float[Tensor, "batch d_out"]
    losses: Mapping[str, Term]
    sums: Mapping[str, Tensor] = {}

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Σ weight · value."""
        total: Tensor = sum(term.weight * term.value for term in self.losses.values())  # type: ignore[assignment]
        return total


class SAE(nn.Module, abc.ABC):
    """A way to train a dictionary: an activation, a loss on it, and the state that both need.

    Final classes only. `step` changes no state: what moves between steps moves in `after_step_`, from sums over the whole optimizer
    step (all micro-batches, all ranks), which always hold `rows` [] and `fires` [d_sae]. State is a float32 or int64 buffer; a buffer
    of one number is a curve in the logs. Initialisation, constraints and the counters of silence are the dictionary's; no method here
    needs `super()`. In `eval()` mode a row's latents depend on that row alone.
    """

    dictionary: Dictionary
    beta1: float = 0.9
    """Adam's β₁, where the user leaves it to the architecture."""
    is_divisible: bool = False
    """Whether processes may divide its latents: it says `dictionary.total` of every sum over latents in its loss and its state."""
    buffers_of_latents: tuple[str, ...] = ()
    """Its own buffers with one entry per latent."""

    @abc.abstractmethod
    def step(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]) -> Step:
        """Latents of x, the reconstruction of y (y is x for an autoencoder), and the loss, all in scaled units."""

    @abc.abstractmethod
    def to_inference(self) -> InferenceSAE:
        """What is exported: the same function, one row at a time, in scaled units."""

    def to_export(self, x: Float[Tensor, "rows d_in"]) -> InferenceSAE:
        """`to_inference`, with what is to be set on held-out rows x, in scaled units. Changes no state."""
        return self.to_inference()

    def export_rows(self) -> int:
        """How many rows `to_export` wants to see; none are drawn where it is 0."""
        return 0

    def begin_(self, steps: int) -> None:
        """Told, before calibration, how many optimizer steps the run has; once more where a resumed run has become longer."""

    def calibrate_(self, x: Float[Tensor, "sample d_in"]) -> None:
        """Sets state from training rows before the first step."""

    def calibration_rows(self) -> int:
        """How many rows `calibrate_` wants to see."""
        return 8192

    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        """Dual ascent, threshold averages: what follows the optimizer."""

    def after_revival_(self, latents: Int[Tensor, " n"], alive: Bool[Tensor, " d_sae"]) -> None:
        """Sets this architecture's own parameters of latents that were just given a new direction."""

    def after_start_(self, threshold: Float[Tensor, " d_sae"] | None) -> None:
        """Sets this architecture's own parameters when the dictionary was given the weights of an SAE with such thresholds."""

    def per_latent(self) -> list[nn.Parameter]:
        """Parameters whose axis 0 is the latent."""
        shared = {id(self.dictionary.b_dec), id(self.dictionary.W_skip)}
        return [parameter for parameter in self.parameters() if id(parameter) not in shared]

    def of_latents(self) -> dict[str, Tensor]:
        """Parameters and buffers with one entry per latent, by name: what is cut where processes divide the latents."""
        buffers = {name: self.get_buffer(name) for name in ("dictionary.rows_since_fired", *self.buffers_of_latents)}
        ids = {id(parameter) for parameter in self.per_latent()}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in ids} | buffers

    @property
    def architecture(self) -> str:
        """What its file, its yaml and its curves are called."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def check_number(self, name: str, value: float) -> None:
        """Errors: InputError where a schedule must not set the number `name` to `value`."""
        d_sae = self.dictionary.d_sae
        if name == "k" and not 1 <= value <= d_sae:
            raise InputError(f"k would become {value:g}: choose 1 ≤ k ≤ {d_sae}")
        if name == "target_l0" and not 0 < value < d_sae:
            raise InputError(f"target_l0 would become {value:g}: choose 0 < target_l0 < {d_sae}")
        if value < 0:
            raise InputError(f"{name} would become {value:g}: it must not be negative")

    def numbers(self) -> dict[str, Tensor]:
        """Buffers of one number, by name: curves in the logs."""
        return {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer.ndim == 0}
