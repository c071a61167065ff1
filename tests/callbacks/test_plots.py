import io

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.image import imread
from matplotlib.lines import Line2D
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from sae_lightning.callbacks.plots import Plots
from sae_lightning.errors import InputError
from sae_lightning.run.build import Run
from tests.runs import SMALL, fit

NAMES = ["validation_density", "l0_per_row", "density_against_activation", "decoder_encoder_cosine", "latent_norms"]
WORDS = f"{SMALL} callbacks=[plots]"


def plots_of(run: Run) -> Plots:
    return next(callback for callback in run.trainer.callbacks if isinstance(callback, Plots))  # type: ignore[attr-defined]


class Images(Logger):
    """Keeps what it is given, and whether it is a picture by then."""

    def __init__(self):
        super().__init__()
        self.got: list[tuple[str, int]] = []

    @property
    def name(self):
        return "images"

    @property
    def version(self):
        return 0

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, *args, **kwargs): ...

    def log_image(self, key: str, images: list[str], step: int) -> None:
        (path,) = images
        assert imread(path).shape == (480, 720, 4)
        self.got.append((key, step))


def at(line: Line2D) -> float:
    """Where an upright line stands."""
    return float(np.asarray(line.get_xdata())[0])


def histogram(axes, i: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heights and edges of the i-th one."""
    return axes.patches[i].get_data()[:2]


# Dense latents, sparse ones, and sparse ones that hold entries which are not active.
@pytest.mark.parametrize("model", ["model=relu", "model=topk model.k=4", "model=gated"])
def test_what_is_drawn_is_what_the_exported_sae_does_with_held_out_rows(model, tmp_path):
    run = fit(f"{model} {WORDS} dictionary.sparse={'false' if 'relu' in model else 'null'} optimizer.lr=3e-3", tmp_path)
    sae, x = run.module.export(), torch.cat([batch.x for batch in run.data.held_out()])
    f = sae.encode(x).dense()
    fires, l0 = (f > 0).sum(0), (f > 0).sum(1)
    assert len(x) == 512
    assert 0 < (fires > 0).sum() <= 64

    sums = plots_of(run).sums
    assert int(sums["rows_with"].sum()) == 512
    # An h that is 0 to rounding may fire on one side only.
    assert_close(sums["fires"], fires, atol=1, rtol=0)
    assert_close(sums["rows_with"] @ torch.arange(65), l0.sum(), atol=2, rtol=0)
    assert_close(sums["activation"].float(), f.sum(0), rtol=1e-3, atol=1e-4)

    figures = dict(plots_of(run).figures(run.module, 40))
    assert list(figures) == NAMES
    (density,), (rows,), (points,), (cosines,), (norms,) = (figure.axes for figure in figures.values())
    logs = (sums["fires"][sums["fires"] > 0] / 512).log10().numpy()
    edges = [patch.get_x() for patch in density.patches] + [density.patches[-1].get_x() + density.patches[-1].get_width()]
    assert [patch.get_height() for patch in density.patches] == np.histogram(logs, np.asarray(edges, np.float32))[0].tolist()
    assert sum(patch.get_height() for patch in rows.patches) == 512
    assert at(rows.lines[0]) == pytest.approx(float(l0.float().mean()), abs=5e-3)
    drawn = np.asarray(points.lines[0].get_xydata())
    assert_close(torch.from_numpy(drawn[:, 0]), torch.from_numpy(logs).double(), rtol=1e-5, atol=1e-6)
    assert_close(torch.from_numpy(drawn[:, 1]).float(), (f.sum(0) / fires)[fires > 0].log10(), rtol=1e-3, atol=1e-3)

    cosine = cosine_similarity(sae.W_enc, sae.W_dec).double().numpy()
    heights, edges = histogram(cosines)
    assert heights.sum() == 64
    assert (edges[0], edges[-1]) == (pytest.approx(cosine.min(), abs=1e-5), pytest.approx(cosine.max(), abs=1e-5))
    assert at(cosines.lines[0]) == pytest.approx(np.sort(cosine)[31], abs=1e-5)  # the lower median of 64
    unit = [line.get_label() for line in norms.lines]
    encoder, decoder = (weights.norm(dim=1) for weights in (run.module.sae.dictionary.W_enc.detach(), sae.W_dec))
    assert at(norms.lines[0]) == pytest.approx(float(encoder.median()), rel=1e-4)
    assert at(norms.lines[1]) == pytest.approx(float(decoder.median()), rel=1e-4)
    assert ("decoder, all 1" in unit) == run.module.sae.dictionary.unit_norm


def test_pictures_are_left_and_curves_are_as_without_them(tmp_path):
    for name, words in {"with": WORDS, "without": f"{WORDS} callbacks.plots=null"}.items():
        run = fit(f"model=topk model.k=4 {words}", tmp_path / name)
        run.trainer.loggers[0].save()
    assert sorted(path.name for path in (tmp_path / "with" / "plots").iterdir()) == sorted(f"{name}.png" for name in NAMES)
    for path in (tmp_path / "with" / "plots").iterdir():
        picture = imread(path)
        assert picture.shape == (480, 720, 4)
        assert 0.02 < float((picture[..., :3].min(-1) < 0.9).mean()) < 0.7  # neither empty nor full
    assert not (tmp_path / "without" / "plots").exists()
    curves = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("with", "without")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(("period", "steps"), [(None, [10, 20, 25]), (20, [20, 25]), (15, [25])])
def test_loggers_get_five_pictures_of_each_validation_that_is_due(small_run, tmp_path, period, steps):
    from sae_lightning.callbacks.final_validation import FinalValidation

    logger = Images()
    small_run([Plots(period), FinalValidation()], steps=25, loggers=[logger], enable_checkpointing=False)
    assert logger.got == [(f"plots/{name}", step) for step in steps for name in NAMES]


def test_tensorboard_gets_them(small_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small_run([Plots()], steps=20, loggers=[TensorBoardLogger(tmp_path, name="tensorboard", version="")], enable_checkpointing=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == sorted(f"plots/{name}" for name in NAMES)
    for name in NAMES:
        found = events.Images(f"plots/{name}")
        assert [image.step for image in found] == [10, 20]
    last = np.asarray(imread(io.BytesIO(found[-1].encoded_image_string)))
    assert (last == imread(tmp_path / "plots" / f"{NAMES[-1]}.png")).all()


class SanityCheck(L.Callback):
    def setup(self, trainer, pl_module, stage):
        trainer.num_sanity_val_steps = 2


def test_a_sanity_check_draws_nothing(small_run, tmp_path):
    plots, logger = Plots(), Images()
    small_run([SanityCheck(), plots], steps=5, loggers=[logger], enable_checkpointing=False)
    assert int(plots.sums["rows_with"].sum()) == 0
    assert logger.got == []
    assert not (tmp_path / "plots").exists()


def test_a_transcoder_of_two_widths_has_no_cosine_and_other_norms(tmp_path):
    run = fit(f"model=topk model.k=4 {WORDS} dictionary=transcoder data.d_out=12", tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == set(NAMES) - {"decoder_encoder_cosine"}
    (axes,) = dict(plots_of(run).figures(run.module, 40))["latent_norms"].axes
    sae = run.module.export()
    # Decoder rows of norm 1 in training have s_out / s_in in raw space.
    s_in, s_out = float(run.module.s_in[0]), float(run.module.s_out[0])
    assert at(axes.lines[1]) == pytest.approx(s_out / s_in, rel=1e-4)
    assert at(axes.lines[1]) == pytest.approx(float(sae.W_dec.norm(dim=1).median()), rel=1e-4)
    assert at(axes.lines[0]) == pytest.approx(float(sae.W_enc.norm(dim=1).median()), rel=1e-4)


def test_a_null_model_is_drawn_as_it_is_fitted(tmp_path):
    fit("model=pca model.k=4 " + WORDS, tmp_path / "fitted").fit()
    assert {path.stem for path in (tmp_path / "fitted" / "plots").iterdir()} == set(NAMES)


def test_the_period_must_be_positive():
    with pytest.raises(InputError, match=r"callbacks\.plots\.every_n_steps is 0"):
        Plots(0)
