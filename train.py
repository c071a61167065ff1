"""python train.py model=lagrangian data=sampled_text …: caches activations where they are missing, trains, exports, evaluates."""

from omegaconf import DictConfig

from sae_lightning.run.entry import entry


@entry("train")
def main(cfg: DictConfig) -> float:
    from sae_lightning.run.build import build
    from sae_lightning.run.finish import score
    from sae_lightning.run.record import recording

    trainer, module, data, folder = build(cfg)
    with recording(folder, seed=cfg.seed, module=module, rows_seen=lambda: data.batches_trained * data.batch_size):
        trainer.fit(module, data)
        score(cfg, data, folder)
    return float(trainer.callback_metrics[cfg.optimized_metric])


if __name__ == "__main__":
    main()
