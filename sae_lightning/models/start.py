"""A new run from old weights."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.data.batch import Views
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.base import SAE

KINDS = {"one": "an autoencoder", "pair": "a transcoder", "stack": "a crosscoder"}


def check_start(sae: SAE, start: InferenceSAE) -> None:
    """Errors: InputError where `start` has another size than `sae`, or a part that it has not, or `sae` is fitted without a training."""
    if not any(parameter.requires_grad for parameter in sae.parameters()):
        raise InputError(f"{sae.architecture} is fitted to the rows, whatever it starts from: leave model.init_from out")
    d = sae.dictionary
    found = (start.d_sae, start.W_enc.shape[1], start.W_dec.shape[1])
    wanted = (d.d_sae, d.shape.d_in, d.shape.d_out)
    if found[1:] != wanted[1:]:
        raise InputError(
            f"it reads rows of width {found[1]} and writes {found[2]}, this run's are {wanted[1]} and {wanted[2]}: choose its hook point"
        )
    if found[0] != wanted[0]:
        raise InputError(
            f"it has {found[0]} latents, this run {wanted[0]}: add dictionary.d_sae={found[0]} dictionary.expansion_factor=null"
        )
    if start.W_skip is not None and d.W_skip is None:
        raise InputError("it has a skip connection, this run's dictionary has none: choose the dictionary that it was trained with")


def check_views(start: InferenceSAE, views: Views) -> None:
    """Errors: InputError where `start` says that it was trained on rows of other hook points: as another kind of dictionary."""
    found = str(start.about.get("views", views))
    if found != views:
        raise InputError(f"it is {KINDS.get(found, 'of another kind')}, this run trains {KINDS[views]}: choose the dictionary that it is")


@torch.no_grad()
def start_from_(sae: SAE, start: InferenceSAE, x: Float[Tensor, "sample d_in"]) -> None:
    """Gives `sae` the weights of `start`, which is in the space of training, and calibrates it on the rows x.

    Where the new dictionary keeps its decoder rows at norm 1, a latent's length moves into its encoder row; where it treats b_dec in
    another way, b_enc makes up for that: h · W_dec is the same function. Thresholds of one per latent, where both sides have them and
    `start` uses them, are copied too, and are calibrated otherwise; so is one threshold for all latents where those of `start` are one.
    """
    d = sae.dictionary
    length = start.W_dec.norm(dim=1).clamp(min=1e-12) if d.unit_norm else torch.ones_like(start.b_enc)
    change = int(d.subtract) - int(start.subtract)  # 0 where x and y differ: neither subtracts
    shift = change * (start.W_enc @ start.b_dec) if change else 0
    d.W_enc.copy_(start.W_enc * length[:, None])
    d.W_dec.copy_(start.W_dec / length[:, None])
    b_enc = (start.b_enc + shift) * length
    d.b_enc.copy_(b_enc)
    d.b_dec.copy_(start.b_dec)
    if d.W_skip is not None and start.W_skip is not None:
        d.W_skip.copy_(start.W_skip)
    sae.calibrate_(x)
    d.b_enc.copy_(b_enc)  # which some architectures begin with below 0
    sae.after_start_(None if start.threshold is None else start.threshold * length)
    own = getattr(sae, "threshold", None)
    if isinstance(own, Tensor) and start.threshold is not None and start.threshold.any():
        own.copy_(start.threshold * length)
