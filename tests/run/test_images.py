"""`data=images` in a run: it trains, counts images, is exported, evaluated and shown; what needs a language model leaves itself out."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from tests.runs import QUIET, ROOT, compose
from tests.transformers.tiny_vision import PATCHES, save_pictures, save_tiny

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    save_tiny("dinov2", folder / "encoder")
    save_pictures(folder / "photos", [f"{i}.png" for i in range(40)])
    return (
        f"data=images data/images=folder data.images.path={folder}/photos data/transformer=hf_vision data.transformer.name={folder}/encoder "
        f"data.stores={folder}/stores data.max_images=40 data.batch_size=24 data.validation_rows=128 dictionary.expansion_factor=4 "
        "trainer.max_steps=10 trainer.val_check_interval=10 trainer.log_every_n_steps=1 trainer.accelerator=cpu model=topk model.k=4 "
        f"{QUIET} logger.names=[prisma] nulls=false evaluate=[reconstruction]"
    )


def test_it_trains_and_is_evaluated(words: str, tmp_path: Path):
    import train as script
    from sae_lightning.run.command import validate
    from sae_lightning.run.composer import Composer
    from sae_lightning.run.finish import score_all

    folder = tmp_path / "topk" / "now"
    cfg = compose(words, folder)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    script.main(cfg)
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    images = {name: [float(value) for _, of, value in lines if of == name] for name in {name for _, name, _ in lines}}
    assert images["details/images"] == [24 * step / PATCHES for step in range(1, 11)] == images["details/n_training_images"]
    assert images["details/rows"] == [24 * step for step in range(1, 11)]
    assert not {"details/tokens", "details/n_training_tokens"} & set(images)
    about = json.loads((folder / "sae" / "sae.json").read_text())["about"]
    assert about["hook"] == "encoder.layer.0"
    assert about["data"]["images"]["files"] == 40
    assert "preprocessor_config.json" in about["transformer"]["files"]
    evaluations = "evaluate=[default,positions,absorption,probing]"
    score_all(validate(Composer(ROOT / "conf", "evaluate"), [f"run={folder}", evaluations, "nulls=false"]))
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert "explained_variance" in scores["sae"]
    assert not any(name.startswith(("ce_", "kl", "probing", "absorption")) or "_at_" in name for name in scores["sae"])
    assert 'class="picture"' in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("model.loss=kl", "model.loss=kl trains through a transformer"),
        ("callbacks=[default,generate_text]", "callbacks.generate_text needs a transformer"),
        ("callbacks=[default,ablate_latents] callbacks.ablate_latents.sets={a:[1]}", "callbacks.ablate_latents needs a transformer"),
        ("data.class_token=maybe", "data.class_token must be true or false"),
        ("data.mode=live", "data.mode"),
        ("data/images=nowhere", "data/images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: str, more: str, said: str, tmp_path: Path):
    from sae_lightning.run.build import build

    with pytest.raises(InputError, match=said) as error:
        build(compose(f"{words} {more}", tmp_path))
    assert "\n" not in str(error.value)
