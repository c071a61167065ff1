"""python evaluate.py run=outputs/…: scores and plots of SAEs that runs exported; study=multirun/…: the report of a sweep."""

from omegaconf import DictConfig

from sae_lightning.run.entry import entry


@entry("evaluate")
def main(cfg: DictConfig) -> None:
    from sae_lightning.run.finish import report_all, score_all

    score_all(cfg) if cfg.study is None else report_all(cfg)


if __name__ == "__main__":
    main()
