import pytest

from sae_lightning.errors import InputError
from sae_lightning.run.command import read, validate
from sae_lightning.run.composer import Composer


@pytest.fixture(scope="module")
def composer(house) -> Composer:
    return Composer(house.conf, "train")


def refusal(composer: Composer, *words: str, multirun: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        validate(composer, words, multirun)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_flags_move_to_the_front_with_their_values():
    command = read(["model=x", "-m", "a=1,2", "--config-dir", "there", "b=3"])
    assert command.argv == ["-m", "--config-dir", "there", "model=x", "a=1,2", "b=3"]
    assert command.words == ["model=x", "a=1,2", "b=3"]
    assert (command.flags.multirun, command.flags.config_dir) == (True, "there")


def test_nothing_is_unpickled_by_a_flag():
    with pytest.raises(InputError, match="unpickle"):
        read(["--experimental-rerun", "config.pickle"])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("seed=x", "seed must be an integer, got 'x'"),
        ("seed=null", "seed must be an integer, got null"),
        ("compile=1", "compile must be true or false, got 1"),
        ("model.k=1e3", "model.k must be an integer, got 1000.0: write 1000"),
        ("model.k=true", "model.k must be an integer, got true"),
        ("model.k=null", "model.k must be an integer, got null"),
        ("trainer.max_steps=abc", "trainer.max_steps must be an integer, got 'abc'"),
        ("trainer.max_stepz=3", "did you mean trainer.max_steps=3?"),
        ("+trainer.max_stepz=3", "Trainer has no parameter 'max_stepz'; did you mean max_steps?"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, got 'fast'"),
        ("lr=1e-3", "did you mean optimizer.lr=1e-3?"),
        ("paths.outputs=7", "paths.outputs must be text, got 7"),
        ("+model.foo=1", "TopK has no parameter 'foo'"),
        ("+foo=1", "nothing reads such a key"),
        ("+callbacks.foo=1", "nothing reads such a key"),
        ("model.target_l0=3", "model.target_l0 belongs to model=lagrangian"),
        ("target_l0=3", "model.target_l0 belongs to model=lagrangian"),
        ("~seed", "every key at the top is needed"),
        ("~callbacks.lrr", "did you mean callbacks.lr?"),
        ("foo", "not of the form key=value"),
        ("model.k=[1", "cannot be read"),
        ("ckpt_path=a/epoch=0.ckpt", """quote it: 'ckpt_path="a/epoch=0.ckpt"'"""),
        ("seed=1,2", "add -m"),
        ("data=cached", "data.store must be given: add data.store=…"),
        ("data=broken", "a yaml file cannot be read"),
        ("data/transformer=tiny", "the default of data has no transformer; add one of data=sampled"),
        ("data/transformr=tiny", "did you mean data/transformer=…?"),
        ("logger=[csv,wandbb]", "did you mean logger=wandb?"),
        ("modle=lagrangan", "did you mean model=lagrangian?"),
        ("++hydra.sweeper.params={seed: 1}", "cannot be composed"),
        ("model={k: 3}", "model is a group"),
        ("experiment=sevn", "did you mean experiment=seven?"),
        ("hydra.run.dirr=x", "did you mean hydra.run.dir=x?"),
        ("hydra/job_logging=rum", "did you mean hydra/job_logging=run?"),
        ("trainer.strategy=deepspeed_stage_2", "use strategy=shard_latents"),
        ("+trainer.strategy._target_=lightning.pytorch.strategies.FSDPStrategy", "use strategy=shard_latents"),
        ("trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}", "use strategy=shard_latents"),
        ("+callbacks.x={_target_: lightning.pytorch.callbacks.Timerr}", "did you mean Timer?"),
        ("+callbacks.x={_target_: sae_lightning.files.os.remove}", "which does not exist"),
        ("+hydra.callbacks.x={_target_: os.system}", "no plugin or callback"),
        ("model.revival=yes", "model.revival must be"),
        ("model.k=${nowhere}", "cannot be resolved"),
    ],
)
def test_the_refusal_says_what_to_do(composer, word, expected):
    assert expected in refusal(composer, word)


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.max_steps=100_000", "optimizer.lr=1", "model.revival=null", "ckpt_path=a/b"],
        ["logger=[csv,wandb]", "strategy=ddp", "trainer.devices=2"],
        ["trainer.strategy=ddp", "trainer.precision=bf16-mixed", "+trainer.detect_anomaly=true"],
        ["trainer.precision=32", "trainer.devices=[0,1]", "trainer.gradient_clip_val=null"],
        ["data=sampled", "data/transformer=tiny", "data.hooks=[a,b]"],
        ["data=cached", "data.store=there"],
        ["experiment=seven", "~callbacks.lr"],
        ["+callbacks.x={_target_: lightning.pytorch.callbacks.Timer, duration: '00:12:00:00'}"],
        ["hydra.run.dir=there", "++hydra.job.env_set.NAME=1"],
    ],
)
def test_what_is_right_passes(composer, words):
    validate(composer, words)


def test_what_a_choice_brings_is_there(composer):
    assert validate(composer, ["experiment=seven"]).model.target_l0 == 7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=topk,lagrangiann"], "did you mean model=lagrangian?"),
        (["seed=0,1,x"], "seed must be an integer, got 'x'"),
        (["model.k=1,2,x"], "model.k must be an integer"),
        (["model=topk,lagrangian", "model.k=1,2"], "model.k belongs to model=topk"),
        (
            ["trainer.strategy={_target_: sae_lightning.shard_latents.ShardLatents}", "trainer.devices=2"],
            "strategy=shard_latents cannot train",
        ),
        (["strategy=ddp"], "strategy=ddp cannot train several ranks inside -m"),
        (["seed=range(5,5)"], "has no values"),
        (["experiment=sweep"], "seed must be an integer, got 'x'"),
    ],
)
def test_each_choice_of_a_sweep_is_judged(composer, words, expected):
    assert expected in refusal(composer, *words, multirun=True)


def test_a_sweep_passes(composer):
    words = ["model=topk,lagrangian", "seed=range(0,3)", "optimizer.lr=1e-3,1e-4", "strategy=ddp", "trainer.devices=1"]
    cfg = validate(composer, words, multirun=True)
    assert cfg.hydra.runtime.choices.model == "topk"
