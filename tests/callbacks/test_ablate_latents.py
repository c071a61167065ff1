import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close

from sae_lightning.callbacks.ablate_latents import AblateLatents
from sae_lightning.callbacks.generate_text import GenerateText
from sae_lightning.callbacks.last import Last
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.clean import CleanPass
from sae_lightning.evaluation.downstream import compare, read_text
from sae_lightning.loggers.csv import CSV
from tests.callbacks.text_rows import Instead, TextRows, lossy, tiny
from tests.transformers.tiny_gpt2 import save_tiny_gpt2

SETS = {"a": [0, 5, 7], "one": [9], "silent": [44, 45, 46, 47], "every": list(range(48))}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("ablated") / "gpt2")


def numbers(path: Path) -> dict[tuple[int, str], float]:
    with path.open(newline="") as file:
        _, *lines = csv.reader(file)
    return {(int(step), name): float(value) for step, name, value in lines if name.startswith("ablations/")}


def by_hand(data: TextRows, without: list[int]):
    """Log-probabilities of GPT-2 whose first layer gives what an SAE makes of its rows, all at once, the latents in `without` at 0."""
    sae, model = lossy(), data.transformer.load()

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        h = torch.einsum("bcd,fd->bcf", x, sae.W_enc).relu()
        f = h * (h >= h.topk(8, dim=-1).values[..., -1:])
        f[..., without] = 0
        y = torch.where(data.special[..., None], x, f @ sae.W_dec + sae.b_dec)
        return (y, *output[1:]) if isinstance(output, tuple) else y

    handle = model.transformer.h[0].register_forward_hook(hook)
    logits = model(input_ids=data.ids).logits
    handle.remove()
    return logits[:, :-1].log_softmax(-1)


def test_every_number_against_a_plain_loop(small_run, transformer, tmp_path):
    data = TextRows(transformer)
    small_run(
        [AblateLatents(SETS, batch_tokens=30), Instead(lossy())], steps=10, data=data, loggers=[CSV(str(tmp_path / "m.csv"))],
        enable_checkpointing=False,
    )  # fmt: skip
    found = numbers(tmp_path / "m.csv")
    counted = ~(data.special[:, 1:] | data.special[:, :-1])
    target = data.ids[:, 1:, None]
    whole = by_hand(data, [])
    for name, latents in SETS.items():
        less = by_hand(data, latents)
        delta = (whole.gather(2, target) - less.gather(2, target))[..., 0][counted].mean()
        kl = (whole.exp() * (whole - less)).sum(-1)[counted].mean()
        assert_close(found[10, f"ablations/{name}/delta_ce"], float(delta), rtol=1e-5, atol=1e-5)
        assert_close(found[10, f"ablations/{name}/kl"], float(kl), rtol=1e-5, atol=1e-5)
    assert len(found) == 2 * len(SETS)
    assert found[10, "ablations/silent/delta_ce"] == found[10, "ablations/silent/kl"] == 0
    assert found[10, "ablations/a/kl"] > 1e-3


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_without_any_latent_the_bias_is_left(small_run, transformer, tmp_path, kind):
    """CE(b_dec spliced) − CE(SAE spliced), each against the plain transformer."""
    data = TextRows(transformer, kind)
    sae = lossy(data.shape.d_in, data.shape.d_out)
    small_run(
        [AblateLatents({"every": list(range(48))}), Instead(sae)], steps=10, data=data, loggers=[CSV(str(tmp_path / "m.csv"))],
        enable_checkpointing=False,
    )  # fmt: skip
    whole, bias = compare(CleanPass(read_text(data, torch.device("cpu"), 8192, 2048)), [sae, lambda x: sae.b_dec.expand(len(x), -1)])
    assert_close(numbers(tmp_path / "m.csv")[10, "ablations/every/delta_ce"], bias.whole.ce - whole.whole.ce, rtol=1e-5, atol=1e-6)
    assert abs(bias.whole.ce - whole.whole.ce) > 1e-3


def test_every_second_validation_also_after_a_resume(small_run, transformer, tmp_path):
    def run(name: str, steps: int = 25, resume=None, *more: L.Callback):
        callbacks = [AblateLatents({"a": [1]}, every_n_validations=2), Last(5), *more]
        small_run(
            callbacks, steps=steps, folder=tmp_path / name, data=TextRows(transformer), val_check_interval=5, resume=resume,
            loggers=[CSV(str(tmp_path / name / "metrics.csv"))],
        )  # fmt: skip

    class Killed(Exception): ...

    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 17:
                raise Killed

    run("whole")
    with pytest.raises(Killed):
        run("broken", 25, None, Kill())
    run("broken", 25, tmp_path / "broken" / "checkpoints" / "last.ckpt")
    whole = numbers(tmp_path / "whole" / "metrics.csv")
    assert {step for step, _ in whole} == {10, 20}
    assert numbers(tmp_path / "broken" / "metrics.csv") == whole


@pytest.mark.usefixtures("unchecked")
def test_two_ranks_log_what_one_process_does_and_write_its_text(small_run, transformer, tmp_path):
    strategies = {"one": {}, "two": {"devices": 2, "strategy": DDPStrategy(start_method="fork", forward_sync_buffers=False)}}
    for name, strategy in strategies.items():
        callbacks = [GenerateText(max_tokens=4, temperature=0), AblateLatents({"a": [1, 2, 3]}), Last(5)]
        loggers = [CSV(str(tmp_path / name / "metrics.csv"))]
        small_run(
            callbacks, steps=10, folder=tmp_path / name, data=TextRows(transformer), val_check_interval=5, loggers=loggers, **strategy
        )
    one, two = (numbers(tmp_path / name / "metrics.csv") for name in strategies)
    assert {step for step, _ in one} == {5, 10}
    assert two == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in one.items()}
    texts = [(tmp_path / name / "generated_text.md").read_text() for name in strategies]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sets": {}}, "sets is empty: name latents"),
        ({"sets": {"a": []}}, r"sets\.a must be a list of one latent or more.*got \[\]"),
        ({"sets": {"a": 3}}, r"sets\.a must be a list"),
        ({"sets": {"a": [1, -1]}}, r"sets\.a must be a list"),
        ({"sets": {"a": [1.5]}}, r"sets\.a must be a list"),
        ({"sets": {"a/b": [1]}}, "'a/b' is no name for curves"),
        ({"sets": {"": [1]}}, "'' is no name for curves"),
        ({"sets": {"a": [1]}, "max_tokens": 0}, "max_tokens=0"),
        ({"sets": {"a": [1]}, "every_n_validations": 0}, "every_n_validations is 0: give a positive number"),
    ],
)
def test_bad_settings_are_one_line(settings, says):
    with pytest.raises(InputError, match=r"^callbacks\.ablate_latents.*" + says) as error:
        AblateLatents(**settings)
    assert "\n" not in str(error.value)


def test_latents_that_are_not_there_and_rows_of_no_transformer_are_one_line(small_run, transformer):
    with pytest.raises(InputError, match=r"sets\.b: there is no latent 48, this SAE has 48: choose among 0 to 47"):
        small_run([AblateLatents({"a": [47], "b": [3, 48]})], data=TextRows(transformer))
    with pytest.raises(InputError, match=r"callbacks\.ablate_latents needs a transformer, and these rows come from none: choose"):
        small_run([AblateLatents({"a": [1]})], data=SyntheticDataModule(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=64))


def live(folder: Path) -> str:
    """Words for a run of a tiny GPT-2 on its own samples."""
    from tests.runs import QUIET

    save_tiny_gpt2(folder / "gpt2")
    return (
        f"data=sampled_text data.mode=live data/transformer=hf data.transformer.name={folder}/gpt2 data.text.batch_size=32 data.stores=nowhere "
        "data.context_length=16 data.max_tokens=512 data.batch_size=32 data.pool_rows=192 data.forward_batch_size=4 data.validation_rows=64 "
        "dictionary.expansion_factor=4 trainer.max_steps=5 trainer.val_check_interval=5 trainer.log_every_n_steps=5 "
        f"trainer.accelerator=cpu {QUIET} callbacks.last.every_n_steps=5 model=topk model.k=4"
    )


@pytest.mark.usefixtures("unchecked")
def test_both_from_the_command_line(tmp_path):
    """And what is refused before anything long begins."""
    from sae_lightning.run.build import build
    from tests.runs import compose, fit

    both = "callbacks=[default,generate_text,ablate_latents] callbacks.generate_text.prompts=[Owl,Pig] callbacks.ablate_latents.sets="
    fit(f"{live(tmp_path)} {both}{{rare:[1,2,3],b:[0]}}", tmp_path / "run")
    found = numbers(tmp_path / "run" / "metrics.csv")
    assert set(found) == {(5, f"ablations/{name}/{what}") for name in ("rare", "b") for what in ("delta_ce", "kl")}
    assert (tmp_path / "run" / "generated_text.md").read_text().count("spliced:") == 2
    with pytest.raises(InputError, match="there is no latent 64, this SAE has 64"):
        build(compose(f"{live(tmp_path)} {both}{{rare:[64]}}", tmp_path / "other"))
