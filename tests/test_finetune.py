"""`model.loss=kl`: what a transformer makes of the reconstructions, and what that teaches an SAE."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sae_lightning.data.batch import Batch, Shape
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError
from sae_lightning.finetune import FineTune, divergence
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.topk import TopK
from tests.architectures import MODELS, fitting
from tests.run.test_resume_exact import Killed, assert_same_runs, train
from tests.runs import QUIET, SMALL, compose
from tests.transformers.tiny_gpt2 import save_tiny_gpt2

HOOK = "transformer.h.0"


class Given(SyntheticDataModule):
    """Training sequences, and the transformer that reads them."""

    hook = HOOK

    def __init__(self, model: nn.Module, ids: Tensor, special: Tensor):
        super().__init__(d=8, n_directions=8, l0=2, batch_size=4, rows_held_out=4)
        self.model, self.ids, self.special = model, ids, special
        self.transformer = self

    def load(self, device: object) -> nn.Module:
        return self.model

    def tokens_train(self, index: int, n: int) -> tuple[Tensor, Tensor]:
        return self.ids[:n], self.special[:n]

    def tokens_held_out(self, n: int) -> tuple[Tensor, Tensor]:
        return self.tokens_train(0, n)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Float64 throughout (a Llama normalises in float32), random weights so large that layer 0 matters to the end."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, vocab_size=20, initializer_range=0.5)
        return GPT2LMHeadModel(config).double().eval().requires_grad_(False)


@pytest.fixture
def data(model: nn.Module) -> Given:
    ids = torch.randint(2, 20, (3, 6), generator=torch.Generator().manual_seed(1))
    special = torch.zeros(3, 6, dtype=torch.bool)
    special[:, 0] = special[1, 3] = True
    return Given(model, ids, special)


@pytest.fixture
def sae() -> TopK:
    torch.manual_seed(2)
    made = TopK(partial(Dictionary, Shape((8,), (8,)), d_sae=24), k=3).double()
    with torch.no_grad():
        made.dictionary.b_dec.normal_(std=0.3)
        made.dictionary.b_enc.normal_(std=0.1)
    return made


def through(sae: TopK) -> Callable[[Batch], Tensor]:
    """Rows are handed out in float32."""
    return lambda batch: sae.step(batch.x.double(), batch.y.double()).reconstruction


def begun(data: Given) -> FineTune:
    finetune = FineTune(batch_tokens=18)
    finetune.begin(data, torch.device("cpu"))
    return finetune


def by_hand(data: Given, sae: TopK) -> Tensor:
    """The same number by the transformer's own parts, position by position."""
    ids, special, model = data.ids, data.special, data.model

    def after(hook) -> Tensor:
        handle = model.get_submodule(HOOK).register_forward_hook(hook)
        logits = model(input_ids=ids).logits
        handle.remove()
        return logits.log_softmax(-1)

    def spliced(_, __, output: Tensor) -> Tensor:
        rows = [
            output[i, j] if special[i, j] else through(sae)(Batch(output[i, j][None].float(), output[i, j][None].float()))[0]
            for i in range(3)
            for j in range(6)
        ]
        return torch.stack(rows).view_as(output)

    p, q = after(lambda *_: None), after(spliced)
    pairs = [(i, j) for i in range(3) for j in range(5) if not special[i, j] and not special[i, j + 1]]
    assert len(pairs) == 3 * 4 - 2
    return torch.stack([(p[i, j].exp() * (p[i, j] - q[i, j])).sum() for i, j in pairs]).mean()


def test_the_term_and_its_gradient_are_those_of_a_slow_computation(data: Given, sae: TopK) -> None:
    value = begun(data).kl(data.ids, data.special, through(sae))
    expected = by_hand(data, sae)
    assert_close(value, expected)
    assert float(value.detach()) > 0.01
    own = torch.autograd.grad(value, list(sae.parameters()))
    assert_close(own, torch.autograd.grad(expected, list(sae.parameters())))
    assert all(gradient.abs().max() > 1e-6 for gradient in own)


def test_its_gradient_is_that_of_finite_differences(data: Given, sae: TopK) -> None:
    finetune = begun(data)

    def kl() -> Tensor:
        return finetune.kl(data.ids, data.special, through(sae))

    step = 1e-6
    for parameter, gradient in zip(sae.parameters(), torch.autograd.grad(kl(), list(sae.parameters())), strict=True):
        at = int(gradient.abs().argmax())  # an entry that a selected latent depends on
        with torch.no_grad():
            parameter.view(-1)[at] += step
            above = kl()
            parameter.view(-1)[at] -= 2 * step
            below = kl()
            parameter.view(-1)[at] += step
        assert_close((above - below) / (2 * step), gradient.flatten()[at], rtol=1e-5, atol=1e-8)


def test_the_identity_costs_nothing_and_special_positions_are_not_given(data: Given) -> None:
    seen: list[Tensor] = []

    def identity(batch: Batch) -> Tensor:
        assert batch.y is batch.x
        seen.append(batch.x)
        return batch.x

    value = begun(data).kl(data.ids, data.special, identity)
    assert abs(float(value.detach())) < 1e-6  # rows are handed out in float32, the transformer computes in float64
    assert len(seen[0]) == 18 - 4
    clean = data.model(input_ids=data.ids, output_hidden_states=True).hidden_states[1]
    assert_close(seen[0].double(), clean[~data.special], rtol=1e-6, atol=1e-6)


def test_the_transformer_gets_no_gradient_and_keeps_its_weights(data: Given, sae: TopK) -> None:
    before = {name: weight.clone() for name, weight in data.model.named_parameters()}
    begun(data).kl(data.ids, data.special, through(sae)).backward()
    for name, weight in data.model.named_parameters():
        assert not weight.requires_grad
        assert weight.grad is None
        assert torch.equal(weight, before[name])


def test_both_halves_weigh_the_same_and_the_rest_what_it_weighed(data: Given, sae: TopK) -> None:
    from sae_lightning.models.base import Term

    rows = torch.randn(16, 8, dtype=torch.float64)
    own = {"reconstruction": sae.step(rows, rows).losses["reconstruction"], "penalty": Term(torch.tensor(2.0), 0.25)}
    losses = begun(data).losses(own, through(sae), 0)
    assert list(losses) == ["reconstruction", "penalty", "kl"]
    assert losses["penalty"] == own["penalty"]
    halves = [losses[name].weight * losses[name].value for name in ("reconstruction", "kl")]
    assert_close(halves[0], halves[1])
    assert_close(halves[0] + halves[1], own["reconstruction"].value)
    weight = losses["kl"].weight
    assert isinstance(weight, Tensor)
    assert not weight.requires_grad


def test_divergence_by_hand_and_in_chunks() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): ½ ln 2 + ½ ln(2/3) = ½ ln(4/3) = 0.143841
    p, q = torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]).log()
    assert_close(divergence(p, q), torch.tensor(0.1438410362))
    many_p, many_q = torch.randn(1100, 7).double(), torch.randn(1100, 7).double().requires_grad_()
    whole = (many_p.softmax(1) * (many_p.log_softmax(1) - many_q.log_softmax(1))).sum()
    assert_close(divergence(many_p, many_q), whole)
    (gradient,) = torch.autograd.grad(divergence(many_p, many_q), many_q)
    assert_close(gradient, many_q.softmax(1) - many_p.softmax(1))
    low = divergence(many_p.bfloat16(), many_q.bfloat16())
    assert low.dtype == torch.float32
    assert_close(low, whole.float(), rtol=0.02, atol=0)


@pytest.mark.parametrize(("rows", "first"), [(None, 0), (1, 9), (100, 9), (101, 8), (450, 5), (10**9, 0)])
def test_it_acts_in_the_last_rows_in_whole_steps(rows: int | None, first: int) -> None:
    finetune = FineTune(rows)
    assert [step for step in range(10) if finetune.is_on(step, 10, 100)] == list(range(first, 10))


# -- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Words for runs on the rows of a small GPT-2 with random weights that reads its own samples."""
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder / "gpt2")
    return (
        f"data=sampled_text data/transformer=hf data.transformer.name={folder}/gpt2 data.stores={folder}/stores data.context_length=16 "
        "data.max_tokens=2048 data.batch_size=64 dictionary.expansion_factor=4 trainer.max_steps=12 trainer.val_check_interval=6 "
        f"trainer.log_every_n_steps=1 trainer.accelerator=cpu {QUIET} model.loss=kl finetune.batch_tokens=128"
    )


def curve(folder: Path, metric: str) -> dict[int, float]:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {int(step): float(value) for step, name, value in lines if name == metric}


@pytest.mark.parametrize("model", MODELS)
def test_every_architecture_is_trained_so(model: str, gpt2: str, tmp_path: Path) -> None:
    train(f"model={model} {fitting(model)} {gpt2} trainer.max_steps=4 trainer.val_check_interval=4", tmp_path)
    kl, weighted, half = (curve(tmp_path, metric) for metric in ("train/kl", "loss/kl", "loss/reconstruction"))
    assert set(kl) == {1, 2, 3, 4}
    assert min(kl.values()) > 0
    assert weighted == pytest.approx(half, rel=1e-4)


@pytest.mark.parametrize("dictionary", ["transcoder", "crosscoder data.hooks=[transformer.h.0,transformer.h.1]"])
def test_two_hook_points_and_a_stack(dictionary: str, gpt2: str, tmp_path: Path) -> None:
    """At the start a transcoder's output has nothing of y but its middle; trained, it has more."""
    words = f"dictionary={dictionary} model=topk model.k=8 {gpt2} trainer.max_steps=40 trainer.val_check_interval=40 optimizer.lr=1e-2"
    train(words, tmp_path)
    kl = list(curve(tmp_path, "train/kl").values())
    assert sum(kl[-10:]) < 0.8 * sum(kl[:10])


def test_only_in_the_last_rows(gpt2: str, tmp_path: Path) -> None:
    plain = train(f"model=topk model.k=4 {gpt2} model.loss=reconstruction", tmp_path / "plain")
    tuned = train(f"model=topk model.k=4 {gpt2} finetune.rows=200", tmp_path / "tuned")
    assert set(curve(tmp_path / "tuned", "train/kl")) == {9, 10, 11, 12}  # 200 rows are four steps of 64
    one, other = (curve(tmp_path / name, "train/reconstruction") for name in ("plain", "tuned"))
    assert [one[step] for step in range(1, 10)] == [other[step] for step in range(1, 10)]
    assert one[12] != other[12]
    assert tuned.module.state_dict().keys() == plain.module.state_dict().keys()  # the transformer is not a part of the checkpoint


def test_a_resumed_run_is_the_uninterrupted_one(gpt2: str, tmp_path: Path) -> None:
    words = f"model=topk model.k=4 {gpt2} finetune.rows=512 callbacks.last.every_n_steps=1"
    train(words, tmp_path / "whole")
    with pytest.raises(Killed):
        train(words, tmp_path / "run", kill_after=8)
    train(f"{words} resume={tmp_path / 'run'}", tmp_path / "run")
    assert len(curve(tmp_path / "run", "train/kl")) == 8
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


def test_bf16_mixed_and_micro_batches(gpt2: str, tmp_path: Path) -> None:
    """The transformer keeps its own type: the term is that of float32, but for what bfloat16 does to the SAE."""
    words = f"model=topk model.k=4 {gpt2} trainer.accumulate_grad_batches=2 trainer.max_steps=6"
    train(words, tmp_path / "fp32")
    train(f"{words} trainer.precision=bf16-mixed", tmp_path / "bf16")
    exact, mixed = (curve(tmp_path / name, "train/kl") for name in ("fp32", "bf16"))
    assert mixed[1] == pytest.approx(exact[1], rel=0.02)
    assert mixed == pytest.approx(exact, rel=0.1)


# Slow: two processes are forked, and wait for each other on every step.
@pytest.mark.slow
def test_two_ranks_are_one_process(gpt2: str, tmp_path: Path) -> None:
    """Rows with a large norm are left out of the store: the ranks count different numbers of positions."""
    words = f"model=topk model.k=4 {gpt2} data.exclude_norm_above=1.1 trainer.max_steps=6"
    train(words, tmp_path / "one")
    train(f"{words} trainer.devices=2 trainer.strategy=ddp_fork", tmp_path / "two")
    one, two = (curve(tmp_path / name, "train/kl") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")]
    assert_close(states[1], states[0], rtol=1e-3, atol=1e-5)
    with pytest.raises(Exception, match=r"finetune.batch_tokens=48 is 3 sequences of 16 tokens, which 2 ranks cannot share"):
        train(f"{words} trainer.devices=2 trainer.strategy=ddp_fork finetune.batch_tokens=48", tmp_path / "three")


# Slow: fetches a transformer with trained weights, lets it write text, and trains three times.
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_transformer_loses_less_than_after_as_many_steps_without_it(tmp_path: Path) -> None:
    """A trained SAE, fine-tuned for 60 steps, against the same SAE after 60 more steps on reconstruction alone."""
    from sae_lightning.evaluation.downstream import Downstream
    from sae_lightning.evaluation.reconstruction import Reconstruction
    from sae_lightning.metrics.variance_per_row import VariancePerRow

    words = (
        f"model=topk model.k=8 data=sampled_text data.transformer.cache={os.environ['SAE_LIGHTNING_TEST_CACHE']} data.stores={tmp_path} "
        "data.max_tokens=24_576 data.batch_size=256 dictionary.expansion_factor=4 trainer.accelerator=cpu callbacks=export "
        "finetune.batch_tokens=512 trainer.val_check_interval=1000 trainer.max_steps={steps} optimizer.lr={lr}"
    )
    train(words.format(steps=300, lr=3e-3), tmp_path / "first")
    start = f"{words.format(steps=60, lr=1e-3)} model.init_from={tmp_path / 'first'}"
    runs = [train(f"{start} model.loss={loss}", tmp_path / loss) for loss in ("reconstruction", "kl")]
    downstream, variance = Downstream(max_tokens=4096), Reconstruction({"variance": VariancePerRow()})
    plain, tuned = (downstream(run.module.inference(), runs[0].data) | variance(run.module.inference(), runs[0].data) for run in runs)
    print({name: (plain[name], tuned[name]) for name in ("kl", "delta_ce", "explained_variance_legacy")})
    assert tuned["kl"] < 0.9 * plain["kl"]
    assert tuned["delta_ce"] < 0.9 * plain["delta_ce"]
    assert tuned["explained_variance_legacy"] > plain["explained_variance_legacy"] - 0.03


def test_what_cannot_be_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    said = "model.loss=kl trains through a transformer, and no transformer is given: choose data=sampled_text or another text"
    with pytest.raises(InputError, match=said) as refused:
        build(compose(f"{SMALL} model.loss=kl", tmp_path))
    assert "\n" not in str(refused.value)
    for wrong in ({"rows": 0}, {"batch_tokens": 0}):
        with pytest.raises(InputError, match="must be positive"):
            FineTune(**wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model.loss=ce", "model.loss must be one of 'reconstruction', 'kl', got 'ce'"),
        ("finetune.rows=1.5", "finetune.rows must be an integer or null, got 1.5"),
        ("finetune.row=5", "finetune.row"),
    ],
)
def test_a_mistyped_word_is_refused(words: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        compose(f"{SMALL} {words}", tmp_path)
    assert said in str(refused.value)
