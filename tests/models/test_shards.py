"""Processes that divide the latents of a dictionary are one process with all of them: every architecture, as every kind of dictionary.

Real gloo processes: a group of two, and one of four for autoencoders.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.testing import assert_close

from tests.models.build import cases, gradients, pair

STEPS = 2
GROUPS = {2: ("autoencoder", "transcoder, skip", "crosscoder"), 4: ("autoencoder",)}
EXACT: dict[str, float] = {"rtol": 1e-10, "atol": 1e-12}


def chosen(parts: int, kind: str) -> dict[str, Callable[[bool | None], Any]]:
    """Every variant of every architecture once; as other kinds of dictionary, and in the larger group with AuxK, every architecture."""
    every = cases(kind).items()
    return {name: make for name, make in every if (parts, kind) == (2, "autoencoder") or "," not in name or (parts == 4 and "auxk" in name)}


ALL = [(parts, kind, name) for parts, kinds in GROUPS.items() for kind in kinds for name in chosen(parts, kind)]


def train(kind: str, sae: Any, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """What one sees, makes and becomes: latents, losses and gradients of the first step, the weights after some, the SAE that is exported."""
    from sae_lightning.latents import of_all_parts
    from sae_lightning.models.parts import clip_norm_, collected, cut_

    x, y = pair(kind)
    cut_(sae, part, parts)
    shards, found = sae.dictionary.shards, {}
    for _ in range(STEPS):
        gradient = gradients(sae, x, y)
        step = sae.step(x, y)
        found = found or {
            "latents": of_all_parts(step.latents, shards).dense(),
            "losses": {name: term.value.detach() for name, term in step.losses.items()},
            "gradients": whole(sae, gradient),
        }
        sae.dictionary.before_step_()
        clip_norm_(sae, 0.5)
        with torch.no_grad():
            for parameter in sae.parameters():
                if parameter.grad is not None:
                    parameter -= 0.3 * parameter.grad
        sae.dictionary.after_step_(step.latents.fires(), torch.tensor(len(x)))
        sae.after_step_({"rows": torch.tensor(len(x)), "fires": step.latents.fires(), **step.sums})
    found["state"] = whole(sae, {name: tensor.clone() for name, tensor in sae.state_dict().items()})
    many = torch.cat([pair(kind, seed)[0] for seed in range(20, 40)])
    one = collected(sae)
    if one is not None:
        found["exported"] = dict(one.to_export(many).named_buffers())
    sae.calibrate_(many)
    found["calibrated"] = whole(sae, dict(sae.state_dict()))
    found["validated"] = sae.eval().step(x, y).loss.detach()
    return found


def whole(sae: Any, named: dict[str, Tensor]) -> dict[str, Tensor]:
    cut = sae.of_latents()
    return {name: sae.dictionary.shards.whole(tensor.contiguous()) if name in cut else tensor for name, tensor in named.items()}


def tied() -> tuple[Tensor, Tensor]:
    """Pre-activations [40, 22] of few different values, and weights."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(-3, 4, (40, 22), generator=g).double(), torch.randint(1, 3, (22,), generator=g).double()


def selections(part: int, parts: int) -> dict[str, Tensor]:
    """What is chosen among ties, dense and whole, of 22 latents: parts are of different sizes."""
    from sae_lightning.kernels import ops
    from sae_lightning.kernels.shards import top_k_of_shards
    from sae_lightning.shards import Shards

    h, weight = tied()
    shards = Shards(22, part, parts)
    own, own_weight = h[:, shards.own].contiguous(), shards.cut(weight)
    found = {"rows": top_k_of_shards(own, 7, None, None), "rows, weighted": top_k_of_shards(own, 7, None, own_weight)}
    found["rows, among"] = top_k_of_shards(own, 7, shards.cut(weight == 1), None)
    found |= {f"batch {n}": ops.top_k_of_batch(own, torch.tensor(n), None)[:4] for n in (1, 100, 333, 10_000)}
    made = {name: torch.zeros_like(own).index_put((rows, latents), values) for name, (values, rows, latents, _) in found.items()}
    return {name: shards.whole(dense.T.contiguous()).T for name, dense in made.items()}


def work(part: int, parts: int, folder: str) -> None:
    from sae_lightning import ranks

    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", parts > 2)  # what the smaller group calls was checked there
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=part, world_size=parts)
    ranks.divide_latents_(True)
    found: dict[Any, Any] = {
        (kind, name): train(kind, make(None), part, parts) for kind in GROUPS[parts] for name, make in chosen(parts, kind).items()
    }
    torch.save(found | {"selections": selections(part, parts)}, f"{folder}/{part}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def groups() -> dict[int, list[dict[Any, Any]]]:
    """By number of processes, what each of them found."""
    found = {}
    train("autoencoder", cases()["topk"](None))  # what torch imports at the first step is imported once, and not in each of them
    for parts in GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(work, args=(parts, folder), nprocs=parts, start_method="fork")  # pyright: ignore[reportPrivateImportUsage]
            found[parts] = [torch.load(Path(folder) / f"{part}.pt", weights_only=True) for part in range(parts)]
    return found


@pytest.mark.parametrize(("parts", "kind", "name"), ALL)
def test_parts_are_one_process(parts: int, kind: str, name: str, groups) -> None:
    sae = cases(kind)[name](None)
    assert sae.is_divisible
    one = train(kind, sae)
    exported = one.pop("exported")
    for found in groups[parts]:
        every = found[kind, name]
        assert_close({key: every[key] for key in one}, one, **EXACT)
    assert_close(groups[parts][0][kind, name]["exported"], exported, **EXACT)


@pytest.mark.parametrize("parts", GROUPS)
def test_of_equal_ones_those_of_lower_rows_and_latents_are_taken(parts: int, groups) -> None:
    h, weight = tied()
    for found in groups[parts]:
        found = found["selections"]
        for name, keys in {"rows": h, "rows, weighted": h * weight, "rows, among": torch.where(weight == 1, h, 0.0)}.items():
            chosen = torch.zeros_like(h, dtype=torch.bool).scatter_(1, keys.sort(dim=1, descending=True, stable=True).indices[:, :7], True)
            assert ((found[name] > 0).sum(1) == ((keys > 0) & chosen).sum(1)).all()
            smallest = keys.sort(dim=1, descending=True).values[:, 6:7]
            assert_close(torch.where(keys > smallest, found[name], 0.0), torch.where((keys > smallest) & (keys > 0), h, 0.0))
        for n in (1, 100, 333, 10_000):
            order = h.flatten().sort(descending=True, stable=True).indices[:n]
            wanted = torch.zeros(h.numel(), dtype=h.dtype).index_put((order,), h.flatten()[order].relu())
            assert_close(found[f"batch {n}"], wanted.view_as(h), rtol=0, atol=0)


def test_the_comparison_can_fail(groups) -> None:
    """What a part makes of its own latents alone is another gradient of what all share."""
    sae = cases()["topk"](None)
    whole_gradient = groups[2][0]["autoencoder", "topk"]["gradients"]["dictionary.b_dec"]
    with torch.no_grad():
        sae.dictionary.W_dec[12:] = 0
    assert not torch.allclose(gradients(sae, *pair("autoencoder"))["dictionary.b_dec"], whole_gradient, rtol=1e-2)
