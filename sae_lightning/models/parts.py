"""An SAE whose latents are divided among processes: cut, put together, and clipped as one."""

import copy

import torch
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.models.base import SAE
from sae_lightning.shards import Shards


@torch.no_grad()
def cut_(sae: SAE, part: int, parts: int) -> None:
    """Leaves in `sae`, which is whole, what belongs to the latents of one part; an optimizer of it is to be made after this.

    Errors: InputError for fewer latents than parts.
    """
    shards = Shards(sae.dictionary.d_sae, part, parts)
    if shards.d_sae < parts:
        raise InputError(f"the dictionary has {shards.d_sae} latents, too few for {parts} processes: lower trainer.devices")
    for name, tensor in sae.of_latents().items():
        _set(sae, name, shards.cut(tensor.detach()))
    sae.dictionary.shards = shards


def collected(sae: SAE) -> SAE | None:
    """The whole of it, a copy in the main memory of process 0, None on the others; `sae` itself where it is whole.

    All processes must call it.
    """
    shards = sae.dictionary.shards
    if shards.parts == 1:
        return sae
    found = {name: shards.collected(tensor) for name, tensor in sae.of_latents().items()}
    if shards.part > 0:
        return None
    tensors = dict(sae.named_parameters()) | dict(sae.named_buffers())
    whole = copy.deepcopy(sae, {id(tensor): tensor for tensor in tensors.values()})  # has the same ones until they are replaced
    for name, tensor in tensors.items():
        part = found.get(name)
        _set(whole, name, tensor.detach().to("cpu", copy=True) if part is None else part)
    whole.dictionary.shards = Shards(shards.d_sae)
    return whole


@torch.no_grad()
def clip_norm_(sae: SAE, most: float) -> None:
    """Scales the gradients of all parts down so that their norm together is at most that."""
    parameters, shards = list(sae.parameters()), sae.dictionary.shards
    if shards.parts == 1:
        torch.nn.utils.clip_grad_norm_(parameters, most)
        return
    cut = {id(parameter) for parameter in sae.per_latent()}
    own, all_have = ([p.grad for p in parameters if (id(p) in cut) is is_cut and p.grad is not None] for is_cut in (True, False))
    squares = shards.total(torch.nn.utils.get_total_norm(own).square()) + torch.nn.utils.get_total_norm(all_have).square()
    torch.nn.utils.clip_grads_with_norm_(parameters, most, squares.sqrt())


def _set(sae: SAE, name: str, tensor: Tensor) -> None:
    """A tensor of another size in place of a parameter or a buffer."""
    owner, _, last = name.rpartition(".")
    module = sae.get_submodule(owner)
    if last in module._buffers:
        module._buffers[last] = tensor
    else:
        module._parameters[last] = nn.Parameter(tensor, requires_grad=module.get_parameter(last).requires_grad)
