"""ReLU with a penalty that turns from L1 towards L0 (Karvonen et al. 2024, arXiv:2408.00113)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.kernels.squares import squared_error
from sae_lightning.models.base import SAE, MakeDictionary, Step, Term

CHANGES = 10
RECENT = 10
SMOOTHING = 1e-6


class PAnneal(SAE):
    """f = relu(h);   L = mean ‖y − ŷ‖² + λ L_p,     L_p = mean Σ_{f_j > 0} (f_j + 1e-6)^p − 1e-6^p.

    p falls from 1 to `last_p` in ten equal steps, evenly spread from `anneal_start` (a share of the run) to the end: the first at
    `anneal_start`, and the last p is in force for the last tenth of the rest. At each change λ ← λ · L_p before / L_p after, both of the
    last ten batches, so that the penalty does not jump. Where decoder rows have other norms than 1, f_j ‖W_dec,j‖ takes the place of f_j.
    Buffers: `sparsity` λ, `p`, `following` (the p after the next change), `changes` [10] (the steps of the changes), `recent` [10, 2] (L_p
    of the last batches with p and with `following`), `filled` (how many of those there are), `level` (changes done).
    Errors: InputError for a negative λ, a share outside [0, 1), a p outside (0, 1].
    """

    sparsity: Float[Tensor, ""]
    p: Float[Tensor, ""]
    following: Float[Tensor, ""]
    changes: Int[Tensor, " 10"]
    level: Int[Tensor, ""]
    recent: Float[Tensor, "10 2"]
    filled: Int[Tensor, ""]
    steps_done: Int[Tensor, ""]
    beta1 = 0.0
    is_divisible = True

    def __init__(self, dictionary: MakeDictionary, sparsity: float, anneal_start: float = 0.2, last_p: float = 0.2):
        super().__init__()
        if sparsity < 0:
            raise InputError(f"model.sparsity is {sparsity}: the weight of the penalty must not be negative")
        if not 0 <= anneal_start < 1 or not 0 < last_p <= 1:
            raise InputError(f"model.anneal_start must lie in [0, 1) and model.last_p in (0, 1], got {anneal_start} and {last_p}")
        self.dictionary = dictionary(unit_norm=True)
        self.anneal_start, self.last_p = anneal_start, last_p
        self.register_buffer("sparsity", torch.tensor(float(sparsity)))
        self.register_buffer("p", torch.tensor(1.0))
        self.register_buffer("following", torch.tensor(1.0 - (1.0 - last_p) / CHANGES))
        self.register_buffer("changes", torch.full((CHANGES,), torch.iinfo(torch.int64).max))
        self.register_buffer("level", torch.tensor(0))
        self.register_buffer("recent", torch.zeros(RECENT, 2))
        self.register_buffer("filled", torch.tensor(0))
        self.register_buffer("steps_done", torch.tensor(0))

    def begin_(self, steps: int) -> None:
        start = round(self.anneal_start * steps)
        self.changes.copy_(start + (steps - start) * torch.arange(CHANGES, device=self.changes.device) // CHANGES)
        self.following.copy_(self._p_of(self._level_after(self.level)))

    def step(self, x: Tensor, y: Tensor) -> Step:
        f = self.dictionary.encode(x).above(0.0).relu()
        y_hat = self.dictionary.decode(f, x)
        sizes = f.values if self.dictionary.unit_norm else f.values * f.at(self.dictionary.norms())
        now = self.dictionary.total(_powers(sizes, self.p))
        losses = {"reconstruction": Term(squared_error(y, y_hat)[0]), "sparsity": Term(now / len(x), self.sparsity)}
        with torch.no_grad():
            sums = {"penalties": torch.stack([now, self.dictionary.total(_powers(sizes, self.following))])}
        return Step(f, y_hat, losses, sums)

    @torch.no_grad()
    def after_step_(self, sums: Mapping[str, Tensor]) -> None:
        self.steps_done += 1
        self.recent.copy_(torch.cat([self.recent[1:], (sums["penalties"] / sums["rows"])[None].to(self.recent)]))
        self.filled.add_(1).clamp_(max=RECENT)
        level = torch.maximum(self.level, (self.changes <= self.steps_done).sum())  # a run made longer never goes back
        changed = level > self.level
        before, after = (self.recent * (torch.arange(RECENT, device=level.device) >= RECENT - self.filled)[:, None]).sum(0)
        self.sparsity.mul_(torch.where(changed & (after > 0), before / after.clamp(min=1e-30), 1.0))
        self.p.copy_(self._p_of(level))
        self.following.copy_(self._p_of(self._level_after(level)))
        self.filled.mul_(~changed)  # what is kept is of one pair of p
        self.level.copy_(level)

    def _level_after(self, level: Tensor) -> Tensor:
        """The next one; in a very short run a change may be of several levels."""
        return (self.changes <= self.changes[level.clamp(max=CHANGES - 1)]).sum()

    def _p_of(self, level: Tensor) -> Tensor:
        return 1.0 - (1.0 - self.last_p) * level / CHANGES

    def to_inference(self) -> InferenceSAE:
        return self.dictionary.to_inference(threshold=torch.zeros_like(self.dictionary.b_enc))


def _powers(f: Tensor, p: Tensor) -> Tensor:
    """Σ (f + 1e-6)^p − 1e-6^p, which is 0 with a gradient of 0 where f is."""
    active = f > 0
    return ((torch.where(active, f, 1.0) + SMOOTHING) ** p - SMOOTHING**p).mul(active).sum()
