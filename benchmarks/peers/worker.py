"""Another library's side of a comparison: run by the interpreter of that library's own environment, told what to do by client.py.

    .peers/sae_lens/bin/python -m benchmarks.peers.worker sae_lens

Reads one JSON object a line from standard input, {"do": <request>, …}, and answers with one JSON object a line; tensors travel in
safetensors and .npy files. The module of a library (with_dictionary_learning.py, …) says which architectures it has, how its trainer takes a
step and what it calls its parameters; this file imports neither that library nor sae_lightning.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LONG = 1 << 40
"""Rows of silence that every library takes for death."""


@dataclass
class Job:
    """What is to be trained. Sizes; `k` active latents a row; `sparsity`: the weight of the library's own penalty, in its own units."""

    architecture: str
    d: int
    latents: int
    batch: int
    k: int = 32
    lr: float = 1e-3
    warmup: float = 0.05
    decay: float = 0.2
    steps: int = 1000
    seed: int = 0
    sparsity: float = 0.1
    groups: list[int] = field(default_factory=list)
    """Sizes of matryoshka's groups."""
    auxk: float = 1 / 32
    options: dict[str, Any] = field(default_factory=dict)
    """Words for this library's configuration alone."""

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup * self.steps)

    @property
    def decay_steps(self) -> int:
        return round(self.decay * self.steps)


class Weight(NamedTuple):
    """A parameter under our name; `transposed` where the library keeps a latent in a column."""

    parameter: torch.nn.Parameter
    transposed: bool = False

    def put(self, value: Tensor) -> None:
        self.parameter.data.copy_(value.T if self.transposed else value)

    def get(self, tensor: Tensor) -> Tensor:
        return (tensor.T if self.transposed else tensor).detach().contiguous().clone()


class Side(Protocol):
    """One SAE of a library with its trainer."""

    scale: float
    """What rows of E‖x‖² = 1 are multiplied with to be what this library expects of its caller."""

    def step(self, x: Tensor) -> None:
        """One whole training step."""

    def losses(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms as the library reports them, and the loss that it differentiates."""
        ...

    def weights(self) -> dict[str, Weight]:
        """Parameters by our names."""
        ...

    def kill(self, dead: Tensor) -> None:
        """Marks latents as long dead."""

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The SAE as it is used after training, by our names: W_enc [latents, d], b_enc, W_dec, b_dec, and `threshold` where there is one;
        and {"subtract": whether b_dec is subtracted from its input, "k": active latents a row, or None}."""
        ...


class Worker:
    def __init__(self, library: Any):
        self.library, self.sides, self.rows = library, {}, []

    def do_architectures(self) -> dict[str, Any]:
        return {"architectures": sorted(self.library.ARCHITECTURES), "version": self.library.VERSION, "torch": torch.__version__}

    def do_threads(self, n: int) -> dict[str, Any]:
        torch.set_num_threads(n)
        return {}

    def do_forget(self) -> dict[str, Any]:
        """Drops every SAE."""
        self.sides.clear()
        return {}

    def do_rows(self, file: str) -> dict[str, Any]:
        """Batches that later steps are made on, in order."""
        self.rows = [batch for _, batch in sorted(load_file(file).items())]
        return {}

    def do_make(self, name: str, job: dict[str, Any], weights: str | None = None) -> dict[str, Any]:
        """An SAE under a name; `weights`: a file with values of its parameters, and `dead`."""
        wanted = Job(**job)
        torch.manual_seed(wanted.seed)
        side = self.library.ARCHITECTURES[wanted.architecture](wanted)
        given = load_file(weights) if weights else {}
        for key, weight in side.weights().items():
            if key in given:
                weight.put(given[key])
        if "dead" in given:
            side.kill(given["dead"].bool())
        self.sides[name] = side
        return {"parameters": {key: list(weight.parameter.shape) for key, weight in side.weights().items()}}

    def do_kill(self, name: str, every: int) -> dict[str, Any]:
        """Every so many latents: encoder rows a tenth as long, long silent."""
        side = self.sides[name]
        weight = side.weights()["W_enc"]
        W_enc = weight.get(weight.parameter)
        dead = torch.arange(len(W_enc)) % every == 0
        W_enc[dead] *= 0.1
        weight.put(W_enc)
        side.kill(dead)
        return {}

    def do_step(self, name: str, i: int) -> dict[str, Any]:
        """One step, timed: seconds of wall clock, and of CPU time over all threads of this process."""
        side, x = self.sides[name], self.rows[i % len(self.rows)]
        x = x if side.scale == 1 else x * side.scale
        wall, cpu = time.perf_counter(), time.process_time()
        side.step(x)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    def do_losses(self, name: str, rows: str, out: str) -> dict[str, Any]:
        """Terms, the loss, and its gradients by our names (`grad.W_enc`, …)."""
        side = self.sides[name]
        terms, loss = side.losses(load_file(rows)["x"])
        loss.backward()
        found = {f"term.{key}": torch.as_tensor(value).detach().reshape(()).clone() for key, value in terms.items()} | {
            "loss": loss.detach().reshape(())
        }
        for key, weight in side.weights().items():
            if weight.parameter.grad is not None:
                found[f"grad.{key}"] = weight.get(weight.parameter.grad)
        save_file(found, out)
        return {}

    def do_train(self, name: str, rows: str, batch: int, first: int, steps: int) -> dict[str, Any]:
        """Steps on the rows of an .npy file [rows, d], from batch number `first`."""
        side, stored = self.sides[name], numpy.load(rows, mmap_mode="r")
        start = time.process_time()
        for i in range(first, first + steps):
            side.step(torch.from_numpy(stored[i * batch : (i + 1) * batch].copy()) * side.scale)
        return {"cpu": time.process_time() - start}

    @torch.no_grad()
    def do_export(self, name: str, out: str) -> dict[str, Any]:
        """Writes the trained SAE for rows of E‖x‖² = 1, in raw units of those rows."""
        side = self.sides[name]
        weights, about = side.export()
        for key in {"b_enc", "b_dec", "threshold"} & set(weights):
            weights[key] = weights[key] / side.scale
        save_file({key: weight.detach().float().contiguous().clone() for key, weight in weights.items()}, out)
        return about

    def do_call(self, function: str, **arguments: Any) -> dict[str, Any]:
        """A function of the library's module that only it has."""
        return getattr(self.library, function)(**arguments)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the library prints is not an answer
    worker = Worker(importlib.import_module(f"benchmarks.peers.with_{sys.argv[1]}"))
    for line in sys.stdin:
        request = json.loads(line)
        do: Callable[..., dict[str, Any]] = getattr(worker, f"do_{request.pop('do')}")
        try:
            answer = do(**request)
        except Exception as error:  # told to the other side, which knows what it asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
