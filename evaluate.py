"""python evaluate.py run=outputs/…: scores and plots of SAEs that runs exported; study=multirun/…: the report of a sweep."""

from omegaconf import DictConfig

from sae_lightning.run.entry import entry


@entry("evaluate")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    if cfg.study is not None:
        from sae_lightning.report.sweep_page import report

        print(report(Path(cfg.study)))
        return
    from sae_lightning.run.finish import score_all

    score_all(cfg)


if __name__ == "__main__":
    main()
