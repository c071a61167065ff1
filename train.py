"""python train.py model=lagrangian data=sampled_text …: caches activations where they are missing, trains, exports, evaluates."""

from omegaconf import DictConfig

from sae_lightning.run.entry import entry


@entry("train")
def main(cfg: DictConfig) -> float | tuple[float, ...] | None:
    from sae_lightning.run.build import build
    from sae_lightning.run.finish import score

    run = build(cfg)
    with run.recording(cfg):
        run.fit()
        run.tell(score(cfg, run.data, run.folder))
    return run.objective(cfg.optimized_metric)


if __name__ == "__main__":
    main()
