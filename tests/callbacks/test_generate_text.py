import json
import os
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import wandb
from torch.testing import assert_close
from torchmetrics import MetricCollection

from sae_lightning.callbacks.generate_text import Entry, GenerateText, write
from sae_lightning.callbacks.last import Last
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError
from sae_lightning.loggers.wandb import WandB
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.topk import TopK
from sae_lightning.module import SAEModule
from sae_lightning.transformers.generation import Sampling, SplicedReader, continued, draw
from tests.callbacks.text_rows import D, Instead, TextRows, given, identity, lossy, tiny
from tests.loggers.offline import read as read_offline

PROMPTS = ["The owl", "The pig and the cat went", ""]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("generated") / "gpt2")


@pytest.fixture
def texts(small_run, transformer, tmp_path):
    """texts(sae, kind, …) → (prompt, clean, spliced) of each prompt at the end of a run."""
    import sae_lightning.callbacks.generate_text as module

    def make(sae, kind="autoencoder", **settings):
        seen: list[list[Entry]] = []
        plain = module.write

        def spy(path: Path, step: int, entries: list[Entry]) -> None:
            seen.append(entries)
            plain(path, step, entries)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "write", spy)
            callback = GenerateText(settings.pop("prompts", PROMPTS), **{"max_tokens": 12, **settings})
            small_run([callback, Instead(sae)], steps=10, data=TextRows(transformer, kind), enable_checkpointing=False)
        (entries,) = seen
        return entries

    return make


NOTHING = given(torch.zeros(4, D), torch.zeros(4, D))


def test_a_perfect_sae_writes_the_same_text_and_a_destroyed_one_another(texts):
    drawn, likeliest = texts(identity()), texts(NOTHING, temperature=0)
    assert all(entry.clean == entry.spliced for entry in drawn)
    assert len({entry.clean for entry in drawn}) == 3
    assert all(entry.clean.startswith(entry.prompt) and len(entry.clean) > len(entry.prompt) + 10 for entry in drawn)
    assert any(entry.clean != entry.spliced for entry in likeliest)
    assert [entry.clean for entry in likeliest] != [entry.clean for entry in drawn]


def test_a_nucleus_of_one_token_is_the_likeliest(texts):
    assert texts(lossy(), temperature=2.0, top_p=1e-6) == texts(lossy(), temperature=0)


def test_clean_text_is_what_transformers_writes(texts, transformer):
    (entry,) = texts(identity(), prompts=PROMPTS[1], temperature=0, max_tokens=12)
    tokenizer, model = transformer.tokenizer(), transformer.load()
    ids = torch.tensor([[0, *tokenizer(PROMPTS[1])["input_ids"]]])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert entry.clean == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_noise_is_that_of_the_seed(texts):
    one, again, other = (texts(lossy(), seed=seed, prompts="The owl") for seed in (3, 3, 4))
    assert again == one
    assert other[0].clean != one[0].clean


@pytest.mark.parametrize("kind", ["autoencoder", "transcoder", "crosscoder"])
@pytest.mark.parametrize("unspliced", [0, 3])
def test_predictions_are_those_of_whole_forward_passes_with_hooks_by_hand(transformer, kind, unspliced):
    """Without a cache; special tokens (0, here first and in the middle) and the first positions stay as they are."""
    data, model = TextRows(transformer, kind), transformer.load()
    d_in, d_out = data.shape.d_in, data.shape.d_out
    sae, ids = lossy(d_in, d_out), data.ids[3:4]
    stays = (ids == 0) | (torch.arange(10) < unspliced)
    reader = SplicedReader(model, data.hooks, data.shape.y, sae, {0}, unspliced)
    found = torch.stack([reader(part) for part in ids.split([1, 4, 1, 1, 1, 1, 1], dim=1)])
    assert_close(found, _by_hand(model, data, sae, ids, stays)[[0, 4, 5, 6, 7, 8, 9]], rtol=1e-4, atol=1e-4)
    everywhere = _by_hand(model, data, sae, ids, torch.zeros_like(stays))[[0, 4, 5, 6, 7, 8, 9]]
    assert (found - everywhere).abs().max() > 0.1


def _by_hand(model, data, sae, ids, stays):
    def module(hook: str):
        return model.get_submodule(hook.removesuffix(":in"))

    handles, rows = [], {}
    for hook in data.hooks.x:

        def keep(_, args, output, hook=hook):
            rows[hook] = args[0] if hook.endswith(":in") else output[0] if isinstance(output, tuple) else output

        handles.append(module(hook).register_forward_hook(keep))
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    x = torch.cat([rows[hook] for hook in data.hooks.x], dim=-1)
    y_hat = sae(x[0])[None].split(list(data.shape.y), dim=-1)
    handles = []
    for hook, new in zip(data.hooks.y, y_hat, strict=True):

        def put(_, args, output, new=new):
            old = output[0] if isinstance(output, tuple) else output
            replaced = torch.where(stays[..., None], old, new)
            return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

        handles.append(module(hook).register_forward_hook(put))
    logits = model(input_ids=ids, use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits


def test_first_positions_without_any_row_are_not_spliced(small_run, transformer, tmp_path):
    """As where norms above a limit are left out of a store: here BOS and the token after it, and one more in a single sequence."""
    data, callback = TextRows(transformer), GenerateText("The owl", max_tokens=1)
    data.special[:, 1], data.special[0, 2] = True, True
    small_run([callback], steps=5, data=data, enable_checkpointing=False)
    assert callback.unspliced == 2


def test_tokens_are_drawn_from_the_nucleus():
    """p = (½, ¼, ⅛, ⅛); logits are twice their logarithms, which temperature 2 undoes. Of ½ + ¼ ≥ 0.7 two are left: ⅔ and ⅓."""
    logits = 2 * torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    g = torch.Generator().manual_seed(0)

    def shares(top_p: float) -> torch.Tensor:
        drawn = [draw(logits, Sampling(2.0, top_p, 1), g) for _ in range(3000)]
        return torch.bincount(torch.tensor(drawn), minlength=4) / 3000

    assert_close(shares(1.0), torch.tensor([0.5, 0.25, 0.125, 0.125]), rtol=0, atol=0.03)
    assert_close(shares(0.7), torch.tensor([2 / 3, 1 / 3, 0, 0]), rtol=0, atol=0.03)
    assert shares(1e-6).tolist() == [1, 0, 0, 0]
    assert draw(logits.flip(0), Sampling(0, 1.0, 1), g) == 3


def test_a_text_ends_at_a_special_token_and_after_max_tokens():
    g = torch.Generator()
    likes = torch.eye(5)[[1, 2, 0, 4]]
    reader = iter(likes)
    assert continued(lambda ids: next(reader), [3], Sampling(0, 1.0, 9), {0}, g, torch.device("cpu")) == [3, 1, 2]
    reader = iter(likes)
    assert continued(lambda ids: next(reader), [3], Sampling(0, 1.0, 1), {0}, g, torch.device("cpu")) == [3, 1]


def test_a_text_ends_where_positions_do(texts, transformer):
    """BOS, the prompt and what follows fill the 32 positions of this GPT-2, which has no more."""
    left = 32 - 1 - len(transformer.tokenizer()("The owl and the")["input_ids"])
    prompt = {"prompts": "The owl and the", "temperature": 0}
    entries = [texts(identity(), max_tokens=n, **prompt) for n in (1000, left, left - 1)]
    assert entries[0] == entries[1] != entries[2]


@pytest.mark.usefixtures("unchecked")
def test_a_resumed_run_leaves_the_file_of_one_that_was_never_stopped(small_run, transformer, tmp_path):
    """The first run dies with an entry behind its checkpoint."""

    class Killed(Exception): ...

    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 17:
                raise Killed

    def run(name: str, *more: L.Callback, resume=None):
        callbacks = [GenerateText(max_tokens=4), Last(10), *more]
        small_run(callbacks, steps=25, folder=tmp_path / name, data=TextRows(transformer), val_check_interval=5, resume=resume)
        return (tmp_path / name / "generated_text.md").read_text()

    whole = run("whole")
    assert [line for line in whole.splitlines() if line.startswith("## ")] == [f"## step {step}" for step in (5, 10, 15, 20, 25)]
    with pytest.raises(Killed):
        run("broken", Kill())
    broken = (tmp_path / "broken" / "generated_text.md").read_text()
    assert "## step 15" in broken
    assert whole.startswith(broken)
    assert run("broken", resume=tmp_path / "broken" / "checkpoints" / "last.ckpt") == whole


def test_no_text_looks_like_a_line_of_the_file(tmp_path):
    write(tmp_path / "t.md", 3, [Entry("a", "b\n## step 9\r## step 9\u2028## step 9\n", "")])
    write(tmp_path / "t.md", 5, [Entry("c", "d", "e")])
    write(tmp_path / "t.md", 5, [Entry("f", "g", "h")])
    steps = "    ## step 9\n" * 3
    first = f"## step 3\n\nprompt:\n\n    a\n\nclean:\n\n    b\n{steps}\nspliced:\n\n    \n\n"
    second = "## step 5\n\nprompt:\n\n    f\n\nclean:\n\n    g\n\nspliced:\n\n    h\n\n"
    assert (tmp_path / "t.md").read_text().partition("\n\n")[2] == first + second


def test_a_table_at_wandb(small_run, transformer, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandB(str(tmp_path), mode="offline", log_code=False, artifacts="none")
    small_run([GenerateText(PROMPTS[:2], max_tokens=5), Instead(identity())], data=TextRows(transformer), loggers=[logger])
    logger.end("finished")
    wandb.teardown()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = [row for row in read_offline(path).history if "generated_text/path" in row or "generated_text" in row]
    assert len(rows) == 2  # one for each validation
    files = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json"))
    tables = [json.loads(file.read_text()) for file in files]
    assert [table["columns"] for table in tables] == [["step", "prompt", "clean", "spliced"]] * 2
    assert sorted((row[0], row[1]) for table in tables for row in table["data"]) == [(s, p) for s in (10, 20) for p in PROMPTS[:2]]
    assert all(row[2] == row[3] for table in tables for row in table["data"])


def test_other_ranks_write_nothing(transformer, tmp_path):
    class Second(L.Trainer):
        is_global_zero = False  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    callback, trainer = GenerateText("The"), Second(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    data = TextRows(transformer)
    callback.begin(trainer, data)
    sae = TopK(partial(Dictionary, data.shape, d_sae=48), k=4)
    callback.look(trainer, SAEModule(sae, partial(torch.optim.Adam, lr=1e-3), MetricCollection([])))
    assert callback.model is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0: give a share above 0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"every_n_validations": 0}, "every_n_validations is 0"),
    ],
)
def test_bad_settings_are_one_line(settings, says):
    with pytest.raises(InputError, match=r"^callbacks\.generate_text\." + says):
        GenerateText(**settings)


def test_what_cannot_be_is_said_before_training(small_run, transformer):
    with pytest.raises(InputError, match=r"callbacks\.generate_text needs a transformer, and these rows come from none: choose"):
        small_run([GenerateText()], data=SyntheticDataModule(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=64))
    with pytest.raises(InputError, match=r"prompts: 'owl owl owl owl owl '… has \d+ tokens with BOS, and .* end at 32: shorten it"):
        small_run([GenerateText("owl " * 40)], data=TextRows(transformer))
    without_bos = TextRows(transformer)
    without_bos.ids = without_bos.ids[:, 1:]
    without_bos.special = without_bos.special[:, 1:]
    with pytest.raises(InputError, match="an empty prompt needs a text that begins with BOS"):
        small_run([GenerateText("")], data=without_bos)
