"""The first steps from initialisation, which take an hour at work B: one that was cut off goes on where it stood.

Delete outputs/first_steps to measure anew.
"""

import functools
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.steps.ours import Floor, Work, make, median, rows, timed
from sae_lightning.files import replacing

FIRST = 2000
FLOOR_EVERY, SAVED_EVERY = 40, 100
FOLDER = Path("outputs/first_steps")


def first(label: str, work: Work, name: str, until: int, steps: int = FIRST) -> dict[str, float]:
    """The first `until` steps of a run of `steps`, each on rows of its own, the floor beside every fortieth.

    Their median by CPU time, in floors, and how many they were: those of an earlier call count, too.
    """
    g = torch.Generator().manual_seed(2)
    directions = F.normalize(torch.randn(work.latents, work.d, generator=g), dim=1)
    step, floor = make(name, work, rows(work, g, directions), False), Floor(work)
    step.sae.begin_(steps)
    path = FOLDER / f"{label}-{name}-{steps}.pt"
    times: dict[str, list[Any]] = {"ours": [], "floor": [], "density": []}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        step.sae.load_state_dict(saved["sae"])
        step.adam.load_state_dict(saved["adam"])
        g.set_state(saved["generator"])
        times = saved["times"]
    for i in range(len(times["ours"]), until):
        x = rows(work, g, directions)
        if i % FLOOR_EVERY == 0:
            times["floor"].append(timed(functools.partial(floor, x)))
        times["ours"].append(timed(functools.partial(step, x)))
        times["density"].append(step.l0 / work.latents)
        if (i + 1) % SAVED_EVERY == 0:
            state = {"sae": step.sae.state_dict(), "adam": step.adam.state_dict(), "generator": g.get_state(), "times": times}
            with replacing(path) as temporary:
                torch.save(state, temporary)
            print(f"{label} {name:12s} {_report(times)}", flush=True)
    return {"first": median(times["ours"], 1) / median(times["floor"], 1), "first_steps": len(times["ours"])}


def _report(times: dict[str, list[Any]]) -> str:
    wall, cpu = (median(times["ours"], clock) / median(times["floor"], clock) for clock in (0, 1))
    mean = statistics.mean(taken[1] for taken in times["ours"]) / statistics.mean(taken[1] for taken in times["floor"])
    density = times["density"]
    return (
        f"first {len(density)} steps: median {wall:.2f} (CPU {cpu:.2f}), mean CPU {mean:.2f}; "
        f"density {density[0]:.1%} at the start, {statistics.median(density):.2%} in the middle, {density[-1]:.2%} at the end"
    )
