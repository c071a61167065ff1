from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from sae_lightning.callbacks.resample import Resample, _draw, forget_
from sae_lightning.data.batch import Batch, Shape
from sae_lightning.data.rows import generator
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.lagrangian import Lagrangian
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK
from sae_lightning.module import SAEModule

DEAD = [1, 5, 40]


class Kill(L.Callback):
    """After step `step`: these latents count as dead, whatever they did. Remembers everything as it then was."""

    def __init__(self, step: int, dead: list[int] = DEAD):
        self.step, self.dead = step, dead

    def on_train_batch_end(self, trainer, pl_module: SAEModule, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not pl_module.sums:
            dictionary = pl_module.sae.dictionary
            dictionary.rows_since_fired.zero_()[self.dead] = 1000
            self.before = {name: value.clone() for name, value in pl_module.sae.state_dict().items()}
            self.moments = moments(trainer, pl_module)


class After(L.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module: SAEModule, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.state = {name: value.clone() for name, value in pl_module.sae.state_dict().items()}
            self.moments = moments(trainer, pl_module)


def moments(trainer, module) -> dict[str, dict[str, torch.Tensor]]:
    state = trainer.optimizers[0].state
    return {name: {key: value.clone() for key, value in state[p].items()} for name, p in module.sae.named_parameters()}


def lagrangian() -> Lagrangian:
    shape = Shape((16,), (16,))
    return Lagrangian(partial(Dictionary, shape, d_sae=48, dead_after=500), target_l0=4.0)


def relu() -> ReLU:
    return ReLU(partial(Dictionary, Shape((16,), (16,)), d_sae=48, dead_after=640), sparsity=1e-3)


@pytest.mark.parametrize("encoder_norm", [None, 0.7])
def test_what_a_revived_latent_is_and_nothing_else_changes(small_run, encoder_norm):
    kill, after = Kill(10), After(10)
    small_run([kill, Resample([10], encoder_norm=encoder_norm), after], steps=10, sae=lagrangian(), enable_checkpointing=False)
    before, state = kill.before, after.state
    dead = torch.tensor(DEAD)
    alive = torch.tensor([j for j in range(48) if j not in DEAD])

    # Each direction is a sampled row less b_dec, each row used once, encoder and decoder the same.
    data = SyntheticDataModule(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=128)
    rows = F.normalize(data.sample(8192, 10).x / data.scale[0] - before["dictionary.b_dec"], dim=1)
    cosine, which = (state["dictionary.W_dec"][dead] @ rows.T).max(1)
    torch.testing.assert_close(cosine, torch.ones(3))
    assert len(set(which.tolist())) == 3
    wanted = 0.2 * before["dictionary.W_enc"][alive].norm(dim=1).mean() if encoder_norm is None else torch.tensor(encoder_norm)
    torch.testing.assert_close(state["dictionary.W_enc"][dead], wanted * state["dictionary.W_dec"][dead])
    assert (state["dictionary.b_enc"][dead] == 0).all()
    assert (state["dictionary.rows_since_fired"] == 0).all()
    torch.testing.assert_close(state["threshold"][dead], before["threshold"][alive].median().expand(3))

    for name, value in state.items():
        if value.ndim and len(value) == 48:
            torch.testing.assert_close(value[alive], before[name][alive], rtol=0, atol=0)
        else:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    for name, kept in after.moments.items():
        for key, moment in kept.items():
            was = kill.moments[name][key].clone()
            if was.ndim and name != "dictionary.b_dec":
                assert was[alive].abs().sum() > 0
                was[dead] = 0
            torch.testing.assert_close(moment, was, rtol=0, atol=0)


def test_badly_explained_rows_are_drawn_more_often():
    """Errors 1, 2 and 3: shares 1 : 16 : 81 of ‖e‖⁴, 1 : 4 : 9 of ‖e‖², over 4000 draws of one row each."""
    squares = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    for power, shares in {4: [1 / 98, 16 / 98, 81 / 98], 2: [1 / 14, 4 / 14, 9 / 14]}.items():
        drawn = torch.cat([_draw(squares ** (power / 2), 1, generator(0, power, i)) for i in range(4000)])
        found = torch.bincount(drawn, minlength=3) / 4000
        torch.testing.assert_close(found, torch.tensor(shares), rtol=0, atol=0.03)


def test_rows_are_drawn_once_and_never_without_an_error():
    drawn = _draw(torch.tensor([1e-200, 0.0, 1e200, 3.0, 0.0], dtype=torch.float64), 10, generator(1))
    assert set(drawn.tolist()) == {2, 3}  # 1e-400 is 0
    assert len(_draw(torch.zeros(5, dtype=torch.float64), 2, generator(1))) == 0


def test_draws_depend_on_seed_and_step(small_run):
    def directions(seed: int, step: int = 10) -> torch.Tensor:
        kill, after = Kill(step), After(step)
        small_run([kill, Resample([step], seed=seed), after], steps=step, sae=None, dead_after=500, enable_checkpointing=False)
        return after.state["dictionary.W_dec"][DEAD]

    torch.testing.assert_close(directions(0), directions(0), rtol=0, atol=0)
    assert (directions(0) - directions(1)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [2, 4, 6, 8]),  # every eighth of 16 steps, four times
        ({"times": None}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"steps": [9, 4, 30]}, [4, 9]),
        ({"steps": [9, 4], "times": 1}, [4]),
        ({"every_n_rows": 64 * 5, "times": None}, [5, 10, 15]),  # an optimizer step is 2 batches of 32 rows
        ({"every_n_rows": 100}, [2, 4, 5, 7]),  # 128, 256, 320 and 448 rows are the first over 100, 200, 300 and 400
        ({"every_n_rows": 10, "times": None}, list(range(1, 17))),
        ({"every_n_rows": 10**6}, []),
    ],
)
def test_when(small_run, settings, wanted):
    happened = []

    class Watched(Resample):
        def resample_(self, trainer, module):
            assert not module.sums
            happened.append(trainer.global_step)
            return super().resample_(trainer, module)

    small_run([Watched(**settings)], steps=16, accumulate=2, enable_checkpointing=False)
    assert happened == wanted


def test_more_dead_latents_than_rows(small_run):
    kill, after = Kill(5, list(range(40))), After(5)
    small_run([kill, Resample([5], rows=7), after], steps=5, dead_after=500, enable_checkpointing=False)
    revived = (after.state["dictionary.W_dec"] != kill.before["dictionary.W_dec"]).any(1)
    assert int(revived.sum()) == 7
    assert int((after.state["dictionary.rows_since_fired"] > 0).sum()) == 33  # these wait


def test_revived_latents_live(small_run):
    """Latents with a bias far below 0 never fire; resampled, they do."""

    class Bury(L.Callback):
        def on_train_start(self, trainer, pl_module: SAEModule):
            dictionary = pl_module.sae.dictionary
            dictionary.b_enc.data[:16] = -10.0

    alive = {}
    for name, treatment in {"without": [], "with": [Resample([40, 80])]}.items():
        _, module = small_run([Bury(), *treatment], steps=100, sae=relu(), enable_checkpointing=False, val_check_interval=1000)
        alive[name] = int((~module.sae.dictionary.dead[:16]).sum())
    assert alive == {"without": 0, "with": 16}


class Pairs(SyntheticDataModule):
    """y is another, narrower thing than x, far from 0."""

    @property
    def shape(self):
        return Shape((16,), (8,))

    @property
    def scale(self):
        return torch.full((16,), 2.0), torch.full((8,), 4.0)

    def train_batch(self, index, rank=0, ranks=1):
        return _pair(super().train_batch(index, rank, ranks))

    def held_out(self):
        return map(_pair, super().held_out())

    def sample(self, n, seed):
        return _pair(super().sample(n, seed))


def _pair(batch: Batch) -> Batch:
    return Batch(batch.x, 5 + batch.x[:, :8].flip(1))


def test_a_transcoder_takes_the_encoder_from_x_and_the_decoder_from_y(small_run):
    data = Pairs(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=128)
    sae = TopK(partial(_not_subtracting, data.shape, d_sae=48, dead_after=500), k=4)
    kill, after = Kill(4, [2]), After(4)
    small_run([kill, Resample([4]), after], steps=4, data=data, sae=sae, enable_checkpointing=False)
    encoder, decoder = (after.state[f"dictionary.{name}"][2] for name in ("W_enc", "W_dec"))
    x, y = data.sample(8192, 4)
    cosine, row = (F.normalize(x, dim=1) @ F.normalize(encoder, dim=0)).max(0)
    torch.testing.assert_close(cosine, torch.tensor(1.0))
    torch.testing.assert_close(decoder, F.normalize(y[row] / 4 - kill.before["dictionary.b_dec"], dim=0))


def _not_subtracting(*args, **kwargs) -> Dictionary:
    return Dictionary(*args, **kwargs | {"subtract": False})


def test_moments_of_any_optimizer_are_forgotten():
    for make in (
        torch.optim.Adam,
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        partial(torch.optim.Adam, amsgrad=True),
        torch.optim.Adagrad,
    ):
        parameter = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = make([parameter])
        parameter.square().sum().backward()
        optimizer.step()
        forget_([optimizer], [parameter], torch.tensor([0, 2]))
        for moment in optimizer.state[parameter].values():
            if torch.is_tensor(moment) and moment.ndim:
                assert moment[[0, 2]].abs().sum() == 0
                assert moment[[1, 3]].abs().sum() > 0


@pytest.mark.parametrize(
    "settings",
    [{"every_n_rows": 0}, {"steps": [5, 0]}, {"times": 0}, {"rows": 0}, {"encoder_norm": 0.0}, {"steps": [5], "every_n_rows": 10}],
)
def test_bad_numbers_are_one_line(settings):
    with pytest.raises(InputError, match=r"callbacks\.resample: "):
        Resample(**settings)
