"""In which units scores are."""

import re

UNITS = {
    "activation": "l1_error l1 latents_(min|max|mean|std|norm) mean_magnitude mse_over_norm",
    "activation²": "mse mse_sum",
    "latents": "l0 l0_.* dead alive (above|below)_1e-\\d absorption_main_latents",
    "log10 of a share": "mean_log10_feature_sparsity",
    "nats": "ce_(clean|sae|ablated|ablated_mean|unigram) delta_ce delta_ce_.* kl kl_.* entropy entropy_clean",
    "tokens per choice": "perplexity perplexity_clean",
    "%": "dead_pct",
    "cosine": "cosine redundancy_max_cosine recovery_mean_cosine recovery_chance_mean_cosine stability_mean_cosine stability_chance",
    "ratio": "relative_reconstruction_bias",
    "rows": "rows",
    "tokens": "tokens context_length",
    "letters": "absorption_letters",
    "share": "fvu normalised_mse explained_variance explained_variance_.* above_.*_share_of_l0 above_.*_explained_variance"
    " ce_recovered ce_recovered_mean top1_agreement token_accuracy token_accuracy_clean"
    " recovery recovery_precision recovery_f1 recovery_chance redundancy_above_.* stability stability_above_.*"
    " probing_(raw_)?accuracy.* absorption absorption_silent absorption_probe_f1",
}
"""Unit → patterns of the names of numbers; the first that fits a whole name."""


def unit(name: str) -> str | None:
    """None for a number that is not one of this package's evaluations."""
    for found, patterns in UNITS.items():
        if any(re.fullmatch(pattern, name) for pattern in patterns.split()):
            return found
    return None
