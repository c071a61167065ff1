"""From which density on the dense form of a step's latents is cheaper than the sparse one: what ops.DENSE_ABOVE is set from.

    python -m benchmarks.density            # work A, forward and backward of the latents, densities from 1 % to 40 %

Encoder, choice above a threshold, relu, decode, squared error and all gradients; CPU time, both forms taking turns in one process.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from sae_lightning.kernels import ops
from sae_lightning.latents import PreActivations

DENSITIES = [0.01, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.4]


def once(x: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor, sparse: bool) -> float:
    """CPU seconds of a step."""
    start = time.process_time()
    f = PreActivations.of(x, W_enc, b_enc, sparse).above(0.0)
    f = f.with_values(f.values.relu())
    (f.decode(W_dec) - x).square().sum(1).mean().backward()
    W_enc.grad = b_enc.grad = W_dec.grad = None
    return time.process_time() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--d", type=int, default=512)
    arguments.add_argument("--latents", type=int, default=4096)
    arguments.add_argument("--batch", type=int, default=2048)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--plain", action="store_true", help="without numba")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.plain:
        ops.fast = lambda: None  # type: ignore[assignment]
    now, ops.DENSE_ABOVE = ops.DENSE_ABOVE, 2.0  # an operator must not switch by itself here
    x = torch.randn(chosen.batch, chosen.d)
    W = F.normalize(torch.randn(chosen.latents, chosen.d), dim=1)
    leaves = W.clone().requires_grad_(), torch.zeros(chosen.latents, requires_grad=True), W.requires_grad_()
    quantiles = x.square().mean().sqrt() * torch.special.ndtri(torch.tensor(DENSITIES))
    for density, bias in zip(DENSITIES, quantiles, strict=True):
        with torch.no_grad():
            leaves[1].fill_(float(bias))
        times = {form: [] for form in (True, False)}
        for i in range(6):
            for form in times:
                took = once(x, *leaves, form)
                if i:
                    times[form].append(took)
        sparse, dense = (1e3 * statistics.median(times[form]) for form in (True, False))
        print(f"density {density:4.0%}: sparse {sparse:7.1f} ms, dense {dense:7.1f} ms, ratio {sparse / dense:.2f}", flush=True)
    print(f"the switch is at {now:.0%}")


if __name__ == "__main__":
    main()
