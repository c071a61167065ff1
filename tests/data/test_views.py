"""Two hook points at once, and several, from one store and one harvest."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.harvest import Harvest
from sae_lightning.data.sources import cached, harvested
from sae_lightning.data.store import Store
from sae_lightning.errors import InputError
from tests.data.tiny import HOOKS, D, RandomText, TinyLlama

WIDE = "model.layers.1.mlp.down_proj:in"
SETTINGS = {"batch_size": 64, "context_length": 16, "max_tokens": 1024, "dtype": "float32", "pool_rows": 256}


def made(folder: Path, **settings):
    return harvested(TinyLlama(), RandomText(), str(folder), **(SETTINGS | settings))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Rows of width 16, 16 and 32."""
    data = made(tmp_path_factory.mktemp("stores"), hooks=[*HOOKS, WIDE])
    data.prepare_data()
    assert isinstance(data.store, Store)
    return data.store


def of(store: Store, **settings):
    return cached(str(store.path), 64, pool_rows=256, **settings)


def test_x_and_y_are_of_the_same_tokens(store: Store) -> None:
    """In training, validation and samples: found again in the store, row by row."""
    data = of(store, views="pair", hook=WIDE, hook_out=HOOKS[0])
    assert data.shape == ((32,), (D,))
    assert data.hooks == ((WIDE,), (HOOKS[0],))
    every_x, every_y = store.read(WIDE, 0, store.rows).float(), store.read(HOOKS[0], 0, store.rows).float()
    for batch in (data.train_batch(0), data.train_batch(9), data.sample(50, 3), *data.held_out()):
        rows = (batch.x[:, None] == every_x).all(2).double().argmax(1)
        assert_close(every_x[rows], batch.x, rtol=0, atol=0)
        assert_close(every_y[rows], batch.y, rtol=0, atol=0)


def test_the_order_of_rows_is_that_of_one_hook_point(store: Store) -> None:
    both, x, y = of(store, views="pair"), of(store), of(store, hook=HOOKS[1])
    stack = of(store, views="stack", hooks=[HOOKS[1], HOOKS[0]])
    for i in (0, 7, 20):
        assert_close(both.train_batch(i).x, x.train_batch(i).x, rtol=0, atol=0)
        assert_close(both.train_batch(i).y, y.train_batch(i).x, rtol=0, atol=0)
        side_by_side = stack.train_batch(i)
        assert side_by_side.y is side_by_side.x
        assert_close(side_by_side.x, torch.cat([y.train_batch(i).x, x.train_batch(i).x], dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("scale", ["unit", "sqrt_d", "none"])
def test_each_hook_point_has_a_scale_of_its_own(store: Store, scale) -> None:
    s = {hook: of(store, hook=hook, scale=scale).scale[0] for hook in store.hooks}
    assert_close(of(store, views="pair", hook=WIDE, hook_out=HOOKS[0], scale=scale).scale, (s[WIDE], s[HOOKS[0]]))
    both = torch.cat([s[HOOKS[0]], s[HOOKS[1]]])
    assert_close(of(store, views="stack", hooks=HOOKS, scale=scale).scale, (both, both))
    assert scale == "none" or both[0] != both[-1]


def test_the_transformers_own_hook_points_are_harvested_together(tmp_path: Path) -> None:
    """A pair: input and output of the middle MLP. A stack: layers at a quarter, a half and three quarters; of two layers that is one."""
    pair = made(tmp_path, views="pair")
    assert isinstance(pair.source, Harvest)
    assert pair.source.hooks == ["model.layers.0.mlp:in", "model.layers.0.mlp"]
    assert pair.hooks == (("model.layers.0.mlp:in",), ("model.layers.0.mlp",))
    pair.prepare_data()
    pair.setup()
    assert len(list(tmp_path.iterdir())) == 1
    assert not torch.equal(pair.train_batch(0).x, pair.train_batch(0).y)
    stack = made(tmp_path, views="stack", hooks=HOOKS)
    assert stack.hooks == (tuple(HOOKS), tuple(HOOKS))
    assert made(tmp_path, views="pair", hooks=[*HOOKS, WIDE], hook=WIDE, hook_out=HOOKS[1]).side_by_side == [WIDE, HOOKS[1]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hook_out": HOOKS[1]}, f"data.hook_out='{HOOKS[1]}' is what a transcoder predicts: add dictionary=transcoder"),
        ({"views": "pair", "hook": HOOKS[0]}, "add data.hook_out=…, or set both to null"),
        ({"views": "pair", "hook_out": HOOKS[0]}, "add data.hook=…, or set both to null"),
        ({"views": "pair", "hook": HOOKS[0], "hook_out": HOOKS[0]}, f"are both '{HOOKS[0]}': name two, or choose dictionary=autoencoder"),
        ({"views": "stack", "hook": HOOKS[0]}, "dictionary=crosscoder reads all of data.hooks: set data.hook and data.hook_out to null"),
        ({"views": "stack", "hooks": HOOKS[:1]}, f"needs two hook points or more, and there is only '{HOOKS[0]}'"),
        ({"views": "stack", "hooks": [HOOKS[0]] * 2}, "names a hook point twice"),
        ({"views": "stack"}, "needs two hook points or more, and there is only 'model.layers.0'"),
        ({"views": "pair", "hooks": HOOKS[:1]}, f"dictionary=transcoder needs two hook points, and there is only '{HOOKS[0]}'"),
        ({"views": "pair", "hooks": HOOKS, "hook": HOOKS[0], "hook_out": "x"}, "data.hook_out='x' is not among data.hooks="),
    ],
)
def test_a_choice_that_is_none_is_refused_in_one_line(settings, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        made(tmp_path, **settings)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_store_does_not_hold_is_refused_in_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hook point 'x' is not in"):
        _ = of(store, views="pair", hook=HOOKS[0], hook_out="x").shape
    with pytest.raises(InputError, match="hook point 'x' is not in"):
        _ = of(store, views="stack", hooks=[HOOKS[0], "x"]).shape
    with pytest.raises(InputError, match=r"any other reads data.hook of a store: set data.hooks=null"):
        of(store, hooks=HOOKS)
    alone = made(tmp_path, hook=HOOKS[0])
    alone.prepare_data()
    for views in ("pair", "stack"):
        with pytest.raises(InputError, match=f"and there is only '{HOOKS[0]}': name more in data.hooks when the store is made"):
            of(alone.store, views=views)


def test_layers_and_mlps_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = TinyLlama()
    config = transformer.config()
    config.num_hidden_layers = 12
    monkeypatch.setattr(transformer, "config", lambda: config)
    assert transformer.layers() == ["model.layers.2", "model.layers.5", "model.layers.8"]
    assert transformer.mlp() == ["model.layers.5.mlp:in", "model.layers.5.mlp"]
    skeleton = transformer.skeleton()
    for layer in skeleton.get_submodule("model.layers").children():
        layer.feed_forward = layer.mlp
        del layer.mlp
    monkeypatch.setattr(transformer, "skeleton", lambda: skeleton)
    with pytest.raises(InputError, match=r"which module of 'model.layers.5' of 'tiny' is its MLP: set data.hook and data.hook_out"):
        transformer.mlp()
