"""python evaluate.py run=outputs/…: scores and plots of the SAE that a run exported; study=multirun/…: the report of a sweep."""

from omegaconf import DictConfig

from sae_lightning.run.entry import entry


@entry("evaluate")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    if cfg.study is not None:
        from sae_lightning.report.sweep_page import report

        print(report(Path(cfg.study)))
        return
    from sae_lightning.run.build import build_data
    from sae_lightning.run.finish import score
    from sae_lightning.run.folder import recorded_config

    folder = Path(cfg.run)
    recorded = recorded_config(folder)
    data = build_data(recorded)
    data.prepare_data()
    data.setup("validate")
    score(cfg, data, folder, None if cfg.sae is None else Path(cfg.sae))


if __name__ == "__main__":
    main()
