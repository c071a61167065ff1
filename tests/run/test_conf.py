"""The real conf/: every option of every group composes, and its keys are parameters of its targets, of the right kind."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_lightning.errors import InputError
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
YAMLS = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml"))
NEEDS_A_VALUE = r"must be given: add [\w.]+=…$"


@pytest.fixture(scope="module")
def composers() -> dict[str, Composer]:
    return {name: Composer(CONF, name) for name in ("train", "evaluate", "harvest")}


@pytest.mark.parametrize("path", YAMLS)
def test_a_package_stands_in_the_first_line(path):
    """Anywhere else Hydra reads it as a comment, and the file's values land where nobody reads them."""
    lines = (CONF / path).read_text().splitlines()
    assert not any(re.match(r"\s*#\s*@package", line) for line in lines[1:])


@pytest.mark.parametrize("path", [path for path in YAMLS if "/" in path and not path.startswith("hydra/")])
def test_every_option_composes_and_fits_its_target(path, composers):
    group, _, option = path.removesuffix(".yaml").rpartition("/")
    word = f"{group}={option}"
    above, _, name = group.rpartition("/")
    mains = [main for main, composer in composers.items() if group.split("/")[0] in composer.named(main)]
    assert mains, f"no defaults list names the group {group}"
    for main in mains:
        composer = composers[main]
        is_inner = above and group not in composer.named(main)
        owners = [o for o in composer.groups[above] if name in composer.named(f"{above}/{o}")] if is_inner else [None]
        assert owners, f"no option of {above} names the group {name}"
        try:
            validate(composer, [word] if owners[0] is None else [f"{above}={owners[0]}", word])
        except InputError as error:
            if not re.search(NEEDS_A_VALUE, str(error)):
                raise


@pytest.mark.parametrize(
    "words",
    [
        "",
        "model=lagrangian data=sampled_text",
        "model=lagrangian data=python_docs data.max_tokens=100_000",
        "model=lagrangian model.target_l0=16 trainer.max_steps=5000 data.batch_size=4096 seed=3",
        "model=lagrangian data=openwebtext",
        "model=lagrangian dictionary=transcoder",
        "dictionary=transcoder dictionary.skip=true data=sampled_text",
        "data=sampled_text data.mode=live",
        "data=openwebtext data.mode=live data.max_tokens=null data.validation_rows=65536",
        "dictionary=transcoder data=sampled_text data.hook=model.layers.0 data.hook_out=model.layers.2",
        "dictionary=crosscoder data=sampled_text data.hooks=[model.layers.1,model.layers.3]",
        "strategy=ddp trainer.devices=2",
        "strategy=shard_latents trainer.devices=4",
        "trainer=ddp",
        "trainer.strategy=ddp trainer.devices=2",
        "debug=fast",
        "logger=[csv,tensorboard]",
        "logger=none",
        "data=sampled_text data/transformer=gpt2",
        "data=images",
        "data=images data/images=folder data.images.path=photos data/transformer=hf_vision data.transformer.name=path/or/hub-id",
        "data=images data/images=hub data.images.name=uoft-cs/cifar10 data.images.column=img data.max_images=10_000",
        "data=sampled_text data/transformer=hf data.transformer.name=some/model",
        "-m model=topk,lagrangian seed=0,1,2",
    ],
)
def test_what_the_readme_says_is_accepted(words, composers):
    typed = words.split()
    validate(composers["train"], [word for word in typed if word != "-m"], multirun="-m" in typed)


@pytest.mark.parametrize(("name", "words"), [("train", []), ("evaluate", ["run=outputs/a"])])
def test_it_is_known_where_runs_and_sweeps_write(name, words, composers):
    cfg = composers[name].compose(words)
    assert cfg.hydra.run.dir.startswith("outputs/")
    assert cfg.hydra.sweep.dir.startswith("multirun/")


def test_a_debug_choice_acts(composers):
    assert validate(composers["train"], ["debug=fast"]).trainer.max_steps < validate(composers["train"], []).trainer.max_steps


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train.py", "--help"], 0, "lagrangian"),
        (["evaluate.py", "--help"], 0, "python evaluate.py run="),
        (["train.py", "modle=topk"], 2, "did you mean model=topk?"),
        (["train.py", "model.k=abc"], 2, "model.k must be an integer, got 'abc'"),
        (["evaluate.py"], 2, "run must be given"),
        (["-m", "sae_lightning.data.harvest", "data=sampld"], 2, "data has no option 'sampld'"),
    ],
)
def test_an_answer_takes_less_than_two_seconds(words, code, said, tmp_path):
    """The best of three, since other tests run beside this one."""
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        script = [words[0]] if words[0] == "-m" else [ROOT / words[0]]
        here = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *script, *words[1:]], cwd=tmp_path, env=here, capture_output=True, text=True)
        seconds.append(time.monotonic() - begun)
        assert done.returncode == code
        assert said in done.stdout + done.stderr
        assert list(tmp_path.iterdir()) == []
        if seconds[-1] < 2:
            break
    print(f"{' '.join(words)}: {min(seconds):.2f} s")
    assert min(seconds) < 2
