"""What a harvest and a training take on given machines: the formula, and the plans of docs/scaling.md that follow from it.

    python -m benchmarks.costs                                        # the tables of docs/scaling.md
    python -m benchmarks.costs --d 4096 --latents 262144 --below 3.7e9 --devices 8 --products 2e14 --link 3e11     # a plan of your own
    python -m benchmarks.scale                                        # the formula beside steps that are measured, with rates measured there

b rows on a process, d numbers a row, f latents there, n = b·k·f/F entries there, R processes; all arithmetic but products in float32.

    product      2·b·d·f operations                             h; the only dense product of a step that is sparse
    selection    2 times the b·f numbers of h through memory    written, and read for what is largest
    entries      4 times n·d numbers, gathered                  decoding, and the gradients of values, W_dec and W_enc
    parameters   15 times the 2·f·d weights through memory      gradients 2, norm and clipping 3, projection 2, Adam 7, unit norm 1½
    ddp          a sum over processes of 2·F·d numbers          b and n are those of an R-th of the batch
    shard_latents a sum of b·d numbers, k numbers of each row   f = F/R, and every process reads all rows

A sum over R processes sends 2(R − 1)/R of its numbers from each, what each has to tell the others (R − 1). Nothing is taken to happen at
the same time as something else, so that real steps may be shorter; dead latents under AuxK are left out (10·b·d operations for each).
Harvest: 2 operations for each parameter below the hook point, and 4·context·d in each layer for attention, a token.
"""

import argparse
from typing import NamedTuple

FLOAT = 4
SELECTION, ENTRIES, PARAMETERS = 2, 4, 15


class Rates(NamedTuple):
    """Of one process while all of its group work, as sustained: products in operations/s, the others in bytes/s; of collectives, seconds each."""

    products: float
    memory: float
    gathered: float
    link: float
    latency: float = 0.0


class Training(NamedTuple):
    """k active latents of `latents` for each of `batch` rows of width d, in `processes` processes."""

    d: int
    latents: int
    k: int
    batch: int
    processes: int = 1
    strategy: str = "ddp"

    @property
    def is_divided(self) -> bool:
        return self.strategy == "shard_latents"

    @property
    def rows(self) -> float:
        """Of a batch, on a process."""
        return self.batch if self.is_divided else self.batch / self.processes

    @property
    def here(self) -> float:
        """Latents on a process."""
        return self.latents / self.processes if self.is_divided else self.latents

    @property
    def sent(self) -> float:
        """Bytes that a process sends in a step."""
        others = self.processes - 1
        summed = self.batch * self.d if self.is_divided else 2 * self.latents * self.d
        told = self.batch * self.k * others if self.is_divided else 0
        return FLOAT * (2 * others / self.processes * summed + told)

    @property
    def held(self) -> float:
        """Bytes of weights, gradients, moments and h on a process."""
        return FLOAT * (4 * 2 * self.here * self.d + self.rows * self.here)


class Seconds(NamedTuple):
    """Of a step, on each process."""

    product: float
    selection: float
    entries: float
    parameters: float
    sending: float

    @property
    def total(self) -> float:
        return sum(self)


def step(training: Training, rates: Rates) -> Seconds:
    """One step, by the formula."""
    b, f, d = training.rows, training.here, training.d
    return Seconds(
        product=2 * b * d * f / rates.products,
        selection=SELECTION * FLOAT * b * f / rates.memory,
        entries=ENTRIES * FLOAT * b * training.k * f / training.latents * d / rates.gathered,
        parameters=PARAMETERS * FLOAT * 2 * f * d / rates.memory,
        sending=0.0 if training.processes == 1 else training.sent / rates.link + rates.latency * (2 if training.is_divided else 1),
    )


class Harvest(NamedTuple):
    """`below`: parameters that a token meets up to the hook point, in so many `layers`."""

    below: float
    layers: int
    d: int
    context: int

    @property
    def operations(self) -> float:
        """Of a token."""
        return 2 * self.below + 4 * self.context * self.d * self.layers

    @property
    def stored(self) -> float:
        """Bytes of a token's row in bfloat16, with its place."""
        return 2 * self.d + 20


def block(d: int, heads: int, kv_heads: int, head: int, mlp: int) -> int:
    """Parameters of a block with grouped queries and a gated MLP."""
    return d * head * (2 * heads + 2 * kv_heads) + 3 * d * mlp


# -- plans --------------------------------------------------------------------------------------------------------------

DEVICE = Rates(products=2e14, memory=2e12, gathered=1e12, link=2e11, latency=5e-5)
"""Taken of one H100 among eight: of its data sheet's 9.9e14 in bfloat16, 3.35e12, half of that, and 4.5e11, rounded well down."""
STORAGE = 1e9
"""Bytes/s of one machine from a shared disk or an object store: a network of 10 Gbit/s."""


class Plan(NamedTuple):
    name: str
    harvest: Harvest
    latents: int
    k: int = 64
    tokens: float = 500e6
    batch: int = 4096


PLANS = (
    Plan("Gemma-2-2B, block 12 of 26", Harvest(13 * block(2304, 8, 4, 256, 9216), 13, 2304, 1024), 65_536),
    Plan("Llama-3-8B, block 16 of 32", Harvest(17 * block(4096, 32, 8, 128, 14336), 17, 4096, 1024), 65_536),
)


def harvest_lines(plan: Plan, rates: Rates, storage: float, parts: list[int]) -> list[str]:
    """Of a table: devices, hours, what each machine of eight devices writes."""
    lines = []
    for devices in parts:
        computing = plan.tokens * plan.harvest.operations / rates.products / devices
        writing = plan.tokens * plan.harvest.stored / storage / max(1, devices // 8)
        per_second = plan.tokens / max(computing, writing)
        lines.append(
            f"| {plan.name} | {devices} | {plan.harvest.operations / 1e9:.1f} G | {plan.tokens * plan.harvest.stored / 1e12:.1f} TB "
            f"| {computing / 3600:.2f} | {writing / 3600:.2f} | {per_second:,.0f} |"
        )
    return lines


def training_lines(plan: Plan, rates: Rates, storage: float, groups: list[tuple[str, int]]) -> list[str]:
    """Of a table: a step by its parts, hours, reading."""
    lines = []
    for strategy, devices in groups:
        training = Training(plan.harvest.d, plan.latents, plan.k, plan.batch, devices, strategy)
        seconds, read = step(training, rates), plan.batch * plan.harvest.stored
        hours = plan.tokens / plan.batch * seconds.total / 3600
        name = "one device" if devices == 1 else f"`{strategy}`, {devices}"
        parts = " + ".join(f"{1e3 * part:.1f}" for part in seconds)
        lines.append(
            f"| {plan.name}, {plan.latents} latents | {name} | {parts} = {1e3 * seconds.total:.1f} | {hours:.2f} | {training.held / 1e9:.1f} GB "
            f"| {training.sent / 1e6:.0f} MB | {read / seconds.total / 1e9:.2f} GB/s | {max(0.0, read / storage - seconds.total) / seconds.total:.0%} |"
        )
    return lines


def tables(plans: tuple[Plan, ...], rates: Rates, storage: float, devices: int) -> str:
    """In Markdown."""
    groups = [("ddp", 1), *((strategy, devices) for strategy in ("ddp", "shard_latents") if devices > 1)]
    harvests = [line for plan in plans for line in harvest_lines(plan, rates, storage, sorted({1, devices, 8 * devices}))]
    trainings = [line for plan in plans for line in training_lines(plan, rates, storage, groups)]
    return "\n".join(
        [
            "| harvest | devices | operations a token | store | hours of computing | hours of writing | tokens/s, by the longer |",
            "|---|---|---|---|---|---|---|",
            *harvests,
            "",
            "| training | devices | ms a step: product + selection + entries + parameters + sending | hours "
            "| held by each | sent by each a step | rows read | waits for them |",
            "|---|---|---|---|---|---|---|---|",
            *trainings,
        ]
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--d", type=int, help="width of a row; without it the plans of docs/scaling.md")
    arguments.add_argument("--latents", type=int, default=65_536)
    arguments.add_argument("--k", type=int, default=64, help="active latents of a row")
    arguments.add_argument("--batch", type=int, default=4096, help="rows of a step, over all devices")
    arguments.add_argument("--tokens", type=float, default=500e6)
    arguments.add_argument(
        "--below", type=float, default=0.0, help="parameters of the transformer below the hook point, without embeddings"
    )
    arguments.add_argument("--layers", type=int, default=0, help="blocks below the hook point")
    arguments.add_argument("--context", type=int, default=1024)
    arguments.add_argument("--devices", type=int, default=8)
    arguments.add_argument("--storage", type=float, default=STORAGE, help="bytes/s from a shared disk or an object store, of each machine")
    for name, value in DEVICE._asdict().items():
        arguments.add_argument(f"--{name}", type=float, default=value, help="of one device, sustained")
    given = arguments.parse_args()
    rates = Rates(*(getattr(given, name) for name in Rates._fields))
    plans = PLANS
    if given.d is not None:
        harvest = Harvest(given.below, given.layers, given.d, given.context)
        plans = (Plan(f"d {given.d}", harvest, given.latents, given.k, given.tokens, given.batch),)
    print(tables(plans, rates, given.storage, given.devices))


if __name__ == "__main__":
    main()
