"""Other libraries' training steps, beside ours."""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from torch import Tensor

from benchmarks.peers.client import Peer, batches_of
from benchmarks.steps.ours import AUXK, DEAD_EVERY, Side, Work, group_sizes

VARIANTS = {"topk": ["topk", "topk, sparse"]}
"""Names of theirs for one of ours, where they are not the same one."""
COUNTS_THE_DEAD = ("dictionary_learning", "sae_lens", "sparsify")


class Peers:
    """The processes of some libraries (client.py), which stay for the whole run."""

    def __init__(self, libraries: Iterable[str], threads: int):
        self.stack, self.peers = ExitStack(), {}
        for library in libraries:
            self.peers[library] = self.stack.enter_context(Peer(library, threads))

    def versions(self) -> dict[str, str]:
        return {library: peer.version for library, peer in self.peers.items()}

    def give(self, batches: list[Tensor]) -> None:
        """The rows that the next steps are made on."""
        for peer in self.peers.values():
            peer.ask("rows", file=peer.put("rows", batches_of(batches)))

    def sides(self, name: str, work: Work) -> dict[str, Side]:
        """Their trainers of an architecture of ours, by the name of the library; `, sparse` is appended to that of a variant."""
        model, active = name.removesuffix(AUXK), name.endswith(AUXK)
        found: dict[str, Side] = {}
        for (library, peer), theirs in itertools.product(self.peers.items(), VARIANTS.get(model, [model])):
            if theirs not in peer.architectures or (active and (library not in COUNTS_THE_DEAD or theirs != model)):
                continue
            job = {"architecture": theirs, "d": work.d, "latents": work.latents, "batch": work.batch, "k": work.k, "lr": 1e-5, "steps": 100_000,
                   "groups": group_sizes(work.latents)}  # fmt: skip
            peer.ask("make", name="timed" + theirs, job=job)
            if active:
                peer.ask("kill", name="timed" + theirs, every=DEAD_EVERY)
            found[library + theirs.removeprefix(model)] = _side(peer, "timed" + theirs)
        return found

    def forget(self) -> None:
        """Gives back the memory of what was timed last."""
        for peer in self.peers.values():
            peer.ask("forget")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stack.close()


def _side(peer: Peer, name: str) -> Side:
    def step(i: int) -> tuple[float, float]:
        answer = peer.ask("step", name=name, i=i)
        return answer["wall"], answer["cpu"]

    return step
