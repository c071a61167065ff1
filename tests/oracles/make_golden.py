"""Writes golden/: losses and gradients of other libraries, as installed from the package index, on one small problem.

    make oracles        # or, where `make peers` was run: python -m tests.oracles.make_golden

golden/problem.safetensors holds weights and rows, golden/<library>.safetensors what that library made of them: `<case>/term.<its name>`,
`<case>/loss` and `<case>/grad.<our name of the parameter>`. tests/oracles/test_*.py compare ours with it. golden/sae_lens_cache/ is a folder
of activations as SAELens caches them, golden/sae_lens_cache.safetensors what it reads there: of tests/data/foreign/test_arrow.py.
golden/foreign/<library>/<case>/ are SAEs as libraries save them, theirs.safetensors what they make of a few rows: of tests/formats/test_foreign.py.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
D, LATENTS, BATCH, K = 8, 32, 16, 4
GROUPS = [4, 4, 8, 16]
SPARSITY, BANDWIDTH, TANH = 0.3, 0.3, 4.0
CONTEXT, SEQUENCES = 6, 24


def problem() -> dict[str, Tensor]:
    """Nothing at an initial value. Every sixth latent is dead: its encoder row is so short that no selection takes it."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    x = normal(BATCH, D)
    W_dec = F.normalize(normal(LATENTS, D), dim=1)
    dead = torch.arange(LATENTS) % 6 == 0
    W_enc = (W_dec + 0.1 * normal(LATENTS, D)) * torch.where(dead, 0.05, 1.0)[:, None]
    return {
        "x": x / x.square().sum(1).mean().sqrt(), "W_dec": W_dec, "free.W_dec": W_dec * (0.5 + torch.rand(LATENTS, 1, generator=g)), "W_enc": W_enc,
        "b_enc": 0.05 * normal(LATENTS) * ~dead, "b_dec": 0.1 * normal(D), "dead": dead.float(), "threshold": 0.3 * torch.rand(LATENTS, generator=g),
        "b_gate": 0.1 * normal(LATENTS), "b_mag": 0.1 * normal(LATENTS), "r_mag": 0.2 * normal(LATENTS),
    }  # fmt: skip


def case(architecture: str, *, free: bool = False, dead: bool = False, **job: Any) -> dict[str, Any]:
    """`free`: decoder rows that are not of norm 1; `dead`: the dead are known to be dead."""
    sizes = {"d": D, "latents": LATENTS, "batch": BATCH, "k": K, "groups": GROUPS, "sparsity": SPARSITY, "steps": 1000}
    return {"job": sizes | {"architecture": architecture} | job, "free": free, "dead": dead}


def _lens(architecture: str, subtract: bool = True, **options: Any) -> dict[str, Any]:
    state = {name: options.pop(name) for name in ("free", "dead") if name in options}
    return case(architecture, options={"apply_b_dec_to_input": subtract} | options, **state)


_selects = {"rescale_acts_by_decoder_norm": False}
_jumps = {"subtract": False, "free": True, "jumprelu_bandwidth": BANDWIDTH}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "dictionary_learning": {
        "topk": case("topk"),
        "topk, auxk": case("topk", dead=True),
        "batch_topk": case("batch_topk"),
        "batch_topk, auxk": case("batch_topk", dead=True),
        "matryoshka": case("matryoshka"),
        "matryoshka, auxk": case("matryoshka", dead=True),
        "relu": case("relu", free=True),
        "relu, unit norm": case("relu, unit norm"),
        "gated": case("gated"),
        "jumprelu": case("jumprelu", free=True, options={"bandwidth": BANDWIDTH}),
        "jumprelu, no penalty": case("jumprelu", free=True, sparsity=0.0, options={"bandwidth": BANDWIDTH}),
        "p_anneal, p 1": case("p_anneal", options={"sparsity_function": "Lp^p"}),
        "p_anneal, p 0.5": case("p_anneal", options={"sparsity_function": "Lp^p", "p_start": 0.5}),
        "p_anneal, Lp": case("p_anneal", options={"p_start": 0.5}),
    },
    "sae_lens": {
        "topk": _lens("topk", **_selects),
        "topk, auxk": _lens("topk", dead=True, **_selects),
        "batch_topk": _lens("batch_topk", **_selects),
        "matryoshka": _lens("matryoshka", **_selects),
        "relu": _lens("relu", free=True),
        "gated": _lens("gated"),
        "jumprelu, l0": _lens("jumprelu", **_jumps),
        "jumprelu, l0, to input": _lens("jumprelu", jumprelu_ste_to_input=True, **_jumps),
        "jumprelu, tanh": _lens("jumprelu", jumprelu_sparsity_loss_mode="tanh", jumprelu_tanh_scale=TANH, **_jumps),
        "jumprelu, tanh, to input": _lens(
            "jumprelu", jumprelu_sparsity_loss_mode="tanh", jumprelu_tanh_scale=TANH, jumprelu_ste_to_input=True, **_jumps
        ),
        "jumprelu, quadratic": _lens("jumprelu", jumprelu_sparsity_loss_mode="quadratic", target_l0=float(K), **_jumps),
        "jumprelu, threshold term": _lens("jumprelu", dead=True, pre_act_loss_coefficient=0.1, **_jumps),
    },
    "sparsify": {"topk": case("topk"), "topk, auxk": case("topk", dead=True)},
}


def made_by(library: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    from benchmarks.peers.client import Peer

    found: dict[str, Tensor] = {}
    with Peer(library) as peer:
        for name, wanted in CASES[library].items():
            weights = {key: value for key, value in given.items() if key not in ("x", "free.W_dec", "dead")}
            weights |= {"W_dec": given["free.W_dec"]} if wanted["free"] else {}
            weights |= {"dead": given["dead"]} if wanted["dead"] else {}
            peer.ask("make", name=name, job=wanted["job"], weights=peer.put("weights", weights))
            found |= {f"{name}/{key}": value for key, value in peer.losses(name, given["x"]).items()}
        if library == "dictionary_learning":
            out = str(Path(peer.folder.name) / "resampled.safetensors")
            at = {"weights": peer.put("weights", given), "rows": peer.put("x", {"x": given["x"]}), "out": out}
            peer.ask("call", function="resampled", latents=LATENTS, d=D, **at)
            found |= {f"resampled/{key}": value for key, value in load_file(out).items()}
        save_file(found, GOLDEN / f"{library}.safetensors", metadata={"version": peer.version})
    return found


def make_cache() -> None:
    from benchmarks.peers.client import Peer

    folder = GOLDEN / "sae_lens_cache"
    shutil.rmtree(folder, ignore_errors=True)
    with Peer("sae_lens") as peer:
        out = str(folder.with_suffix(".safetensors"))
        peer.ask("call", function="cached", folder=str(folder), out=out, context=CONTEXT, d=D, sequences=SEQUENCES)


def make_foreign() -> None:
    for library in ("dictionary_learning", "sae_lens", "sparsify"):
        folder = GOLDEN / "foreign" / library
        shutil.rmtree(folder, ignore_errors=True)
        python = ROOT / ".peers" / library / "bin" / "python"
        subprocess.run([python, "-m", f"tests.oracles.foreign.with_{library}", "write", folder], cwd=ROOT, check=True)
        for exact in folder.glob("*-float64"):
            shutil.rmtree(exact)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    given = problem()
    save_file(given, GOLDEN / "problem.safetensors")
    for library in CASES:
        found = made_by(library, given)
        print(f"{library}: {len(CASES[library])} cases, {(GOLDEN / f'{library}.safetensors').stat().st_size} bytes")
        assert all(torch.isfinite(value).all() for value in found.values())
    make_cache()
    make_foreign()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
