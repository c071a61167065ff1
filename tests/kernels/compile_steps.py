"""Run by test_compile.py in a process without the test suite's type checker: every architecture's step, compiled and not.

Prints one line of json a model: graphs after three steps and at the end, graph breaks, the largest difference of a gradient; and how
many graphs there are when a schedule has then moved its knob three times.
"""

import functools
import json
import sys

import hydra.utils
import torch
import torch._dynamo

from sae_lightning.callbacks.schedule import Schedule
from sae_lightning.data.batch import Shape
from sae_lightning.kernels.graph import compiled_step
from sae_lightning.models.dictionary import Dictionary
from tests import architectures
from tests.architectures import KNOBS, knob

D, LATENTS, BATCH = 16, 64, 48


def run(command: str, backend: str, bf16: bool) -> dict[str, object]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    name, *words = command.split()
    settings = architectures.settings(name, *words)
    settings[knob(name)] = KNOBS[knob(name)][1]
    dictionary = functools.partial(Dictionary, Shape((D,), (D,)), d_sae=LATENTS, dead_after=100)
    sae = hydra.utils.instantiate(settings)(dictionary)
    sae.begin_(1000)
    sae.calibrate_(torch.randn(4096, D))
    sae.dictionary.rows_since_fired[::5] = 1000
    compiled = compiled_step(sae.step, fullgraph=True, backend=backend)
    graphs, worst = [], 0.0
    for i in range(6):
        if i == 4:  # what revives has nothing to do any more, and a batch is unusually dense
            sae.dictionary.rows_since_fired.zero_()
        x, found = torch.randn(BATCH, D), []
        if i == 4:
            x *= 10
        for step in (compiled, sae.step):
            sae.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = step(x, x).loss
            loss.backward()
            found.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in sae.parameters() if p.grad is not None)]))
        worst = max(worst, float((found[0] - found[1]).abs().max() / found[1].abs().max()))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    for value in KNOBS[knob(name)]:
        Schedule({knob(name): {"start": value}}).set_(sae, 1, 1)
        x = torch.randn(BATCH, D)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            moved, wanted = compiled(x, x).loss, sae.step(x, x).loss
        worst = max(worst, float((moved - wanted).abs() / wanted.abs()))
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    moved = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {
        "name": f"{command}, {'bf16' if bf16 else 'fp32'}",
        "after_3": graphs[2],
        "at_the_end": graphs[-1],
        "moved": moved,
        "breaks": breaks,
        "worst": worst,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for precision in sys.argv[2].split(","):
        for model in sys.argv[3:]:
            print(json.dumps(run(model, sys.argv[1], precision == "bf16")), flush=True)
