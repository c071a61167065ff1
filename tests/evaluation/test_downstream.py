import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

HOOK = "model.layers.0"


@pytest.fixture
def tokens():
    ids = torch.randint(2, 20, (12, 10), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[3, 5] = 0, 1
    return ids, (ids == 0) | (ids == 1)


@pytest.fixture
def data(rows, tiny_transformer, tokens):
    return rows(torch.randn(20, 8), transformer=tiny_transformer, hook=HOOK, tokens=tokens[0], special=tokens[1])


def plus_minus(sae, d: int = 8):
    """The identity: x = relu(x) − relu(−x)."""
    return sae(torch.cat([torch.eye(d), -torch.eye(d)]))


def test_clean_is_a_plain_forward_and_the_identity_changes_nothing(data, sae, tiny_transformer, tokens):
    from sae_lightning.evaluation.downstream import Downstream

    ids, special = tokens
    values = Downstream(batch_tokens=30)(plus_minus(sae), data)
    model = tiny_transformer.load()
    labels = ids.masked_fill(special, -100)  # what is predicted from a special token does not count either
    labels[:, 1:][special[:, :-1]] = -100
    assert_close(values["ce_clean"], float(model(input_ids=ids, labels=labels).loss), rtol=1e-5, atol=1e-5)
    assert_close(values["ce_sae"], values["ce_clean"], rtol=1e-5, atol=1e-5)
    assert abs(values["kl"]) < 1e-6
    assert values["top1_agreement"] == 1
    assert_close(values["ce_recovered"], 1.0, rtol=1e-4, atol=1e-4)
    assert_close(values["perplexity_clean"], math.exp(values["ce_clean"]))
    assert values["tokens"] == 12 * 8 - 2  # 12 × 9 pairs, less 12 from BOS, less two with the EOS
    assert values["context_length"] == 10


def by_hand(model, ids, special, replace):
    """Next-token log-probabilities with replace(rows) after layer 0, position by position, by the transformer's own parts."""

    def hook(module, args, output):
        new = output.clone()
        for i, j in itertools.product(range(ids.shape[0]), range(ids.shape[1])):
            if not special[i, j]:
                new[i, j] = replace(output[i, j])
        return new

    handle = model.model.layers[0].register_forward_hook(hook)
    logits = model(input_ids=ids).logits
    handle.remove()
    return logits[:, :-1].log_softmax(-1)


def test_every_number_against_a_slow_computation(data, sae, tiny_transformer, tokens):
    from sae_lightning.evaluation.downstream import Downstream

    ids, special = tokens
    model = tiny_transformer.load()
    g = torch.Generator().manual_seed(1)
    lossy = sae(torch.randn(16, 8, generator=g), 0.1 * torch.randn(16, 8, generator=g), k=3)
    values = Downstream(batch_tokens=1)(lossy, data)
    with torch.no_grad():
        activations = model.model(input_ids=ids, output_hidden_states=True).hidden_states[1]
        mean = activations[~special].mean(0)
        clean = by_hand(model, ids, special, lambda row: row)
        spliced = by_hand(model, ids, special, lambda row: lossy(row[None])[0])
        zero = by_hand(model, ids, special, lambda row: 0 * row)
        average = by_hand(model, ids, special, lambda row: mean)
    counted = ~(special[:, 1:] | special[:, :-1])
    target = ids[:, 1:]

    def mean_of(values):
        return float(values[counted].mean())

    def ce(logs):
        return mean_of(-logs.gather(2, target[..., None])[..., 0])

    frequency = torch.bincount(ids[~special], minlength=20) / int((~special).sum())
    expected = {
        "ce_clean": ce(clean),
        "ce_sae": ce(spliced),
        "ce_ablated": ce(zero),
        "ce_ablated_mean": ce(average),
        "ce_recovered": (ce(zero) - ce(spliced)) / (ce(zero) - ce(clean)),
        "ce_recovered_mean": (ce(average) - ce(spliced)) / (ce(average) - ce(clean)),
        "delta_ce": ce(spliced) - ce(clean),
        "kl": mean_of((clean.exp() * (clean - spliced)).sum(-1)),
        "top1_agreement": mean_of((clean.argmax(-1) == spliced.argmax(-1)).float()),
        "perplexity": math.exp(ce(spliced)),
        "perplexity_clean": math.exp(ce(clean)),
        "token_accuracy": mean_of((spliced.argmax(-1) == target).float()),
        "token_accuracy_clean": mean_of((clean.argmax(-1) == target).float()),
        "entropy": mean_of(-(spliced.exp() * spliced).sum(-1)),
        "entropy_clean": mean_of(-(clean.exp() * clean).sum(-1)),
        "ce_unigram": mean_of(-frequency[target].log()),
        "tokens": float(counted.sum()),
        "context_length": 10.0,
    }
    losses = -(spliced - clean).gather(2, target[..., None])[..., 0]
    divergences = (clean.exp() * (clean - spliced)).sum(-1)
    for name, places in {"00001": [1], "00002": [2, 3], "00004": [4, 5, 6, 7], "00008": [8]}.items():  # nothing from BOS, at 0
        where = torch.zeros_like(counted)
        where[:, places] = counted[:, places]
        expected[f"delta_ce_at_position_{name}"] = float(losses[where].mean())
        expected[f"kl_at_position_{name}"] = float(divergences[where].mean())
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(values[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert values["kl"] > 0.01  # this SAE does damage


MLP = ("model.layers.1.mlp:in", "model.layers.1.mlp")


def with_hooks(data, x: tuple[str, ...], y: tuple[str, ...]):
    """The same data, saying that its rows are of these hook points of width 8."""
    from sae_lightning.data.batch import Hooks, Shape

    class Several(type(data)):
        hooks = Hooks(x, y)  # pyright: ignore[reportAssignmentType]
        shape = Shape((8,) * len(x), (8,) * len(y))  # pyright: ignore[reportAssignmentType]

    data.__class__ = Several
    return data


def test_a_transcoder_is_spliced_at_its_output_made_of_its_input(data, sae, tiny_transformer, tokens):
    """Against a forward pass in which the MLP itself is replaced, position by position."""
    from sae_lightning.evaluation.downstream import Downstream

    ids, special = tokens
    g = torch.Generator().manual_seed(1)
    lossy = sae(torch.randn(16, 8, generator=g), torch.randn(16, 8, generator=g), k=3)
    values = Downstream(batch_tokens=30)(lossy, with_hooks(data, MLP[:1], MLP[1:]))
    model = tiny_transformer.load()

    def ce(function) -> float:
        def hook(module, args, output):
            new = function(args[0], output)
            return torch.where(special[:, :, None], output, new)

        handle = model.model.layers[1].mlp.register_forward_hook(hook)
        logs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        handle.remove()
        counted = ~(special[:, 1:] | special[:, :-1])
        return float(-logs.gather(2, ids[:, 1:, None])[..., 0][counted].mean())

    outputs = []
    assert_close(values["ce_clean"], ce(lambda x, y: (outputs.append(y), y)[1]), rtol=1e-4, atol=1e-5)
    assert_close(values["ce_sae"], ce(lambda x, y: lossy(x.flatten(0, 1)).view_as(y)), rtol=1e-4, atol=1e-5)
    assert_close(values["ce_ablated"], ce(lambda x, y: 0 * y), rtol=1e-4, atol=1e-5)
    assert_close(values["ce_ablated_mean"], ce(lambda x, y: outputs[0][~special].mean(0).expand_as(y)), rtol=1e-4, atol=1e-5)
    assert values["kl"] > 1e-4


def test_a_crosscoder_is_spliced_at_all_its_hook_points_from_a_clean_pass(data, sae, tiny_transformer, tokens):
    """The identity of both changes nothing; of one that keeps the first hook point and forgets the second, only the second counts."""
    from sae_lightning.evaluation.downstream import Downstream

    ids, special = tokens
    both = with_hooks(data, ("model.layers.0", "model.layers.1"), ("model.layers.0", "model.layers.1"))
    same = Downstream()(plus_minus(sae, 16), both)
    assert_close(same["ce_sae"], same["ce_clean"], rtol=1e-5, atol=1e-5)
    encoder = torch.cat([torch.eye(16), -torch.eye(16)])
    decoder = encoder.clone()
    decoder[:, 8:] = 0
    model = tiny_transformer.load()
    handle = model.model.layers[1].register_forward_hook(lambda m, a, y: torch.where(special[:, :, None], y, 0 * y))
    logs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    handle.remove()
    counted = ~(special[:, 1:] | special[:, :-1])
    forgotten = float(-logs.gather(2, ids[:, 1:, None])[..., 0][counted].mean())
    values = Downstream()(sae(encoder, decoder), both)
    assert_close(values["ce_sae"], forgotten, rtol=1e-4, atol=1e-5)
    assert_close(values["delta_ce_at_model.layers.1"], forgotten - same["ce_clean"], rtol=1e-3, atol=1e-5)
    assert abs(values["delta_ce_at_model.layers.0"]) < 1e-5
    assert values["kl_at_model.layers.1"] > 1e-3 > 1e-6 > values["kl_at_model.layers.0"]
    assert abs(forgotten - same["ce_clean"]) > 1e-3


def test_what_does_not_depend_on_the_sae_is_computed_once(data, sae, tiny_transformer):
    from sae_lightning.evaluation.downstream import Downstream

    evaluation = Downstream()
    first = evaluation(plus_minus(sae), data)
    second = evaluation(sae(torch.eye(8), k=1), data)
    assert tiny_transformer.loads == 1
    assert second["ce_ablated_mean"] == first["ce_ablated_mean"]
    assert second["kl"] > first["kl"]
    assert evaluation(plus_minus(sae), data) == first


def test_max_tokens_limits_the_sequences_and_one_is_always_read(data, sae):
    from sae_lightning.evaluation.downstream import Downstream

    assert Downstream(max_tokens=25)(plus_minus(sae), data)["tokens"] == 16
    assert Downstream(max_tokens=1)(plus_minus(sae), data)["tokens"] == 8


def test_nothing_without_a_transformer_and_one_line_without_a_token(rows, sae, tiny_transformer):
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.downstream import Downstream

    assert Downstream()(plus_minus(sae), rows(torch.ones(3, 8))) == {}
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(InputError, match="no token to predict"):
        Downstream()(plus_minus(sae), rows(torch.ones(3, 8), transformer=tiny_transformer, hook=HOOK, tokens=ids, special=ids == 0))


@pytest.mark.slow  # fetches a transformer with trained weights and lets it write its own text
def test_a_real_transformer_on_its_own_text(rows, sae, glassllm):
    from sae_lightning.data.sampled_text import SampledText
    from sae_lightning.evaluation.downstream import Downstream
    from sae_lightning.evaluation.null import pca
    from sae_lightning.transformers.hooks import read

    text = SampledText(batch_size=64).sequences(glassllm, 128, 0, 0)
    ids = torch.tensor(list(itertools.islice(text, 64)))
    model = glassllm.load()
    hook = glassllm.hooks[0]
    activations = read(model, [hook], ids[:32])[hook].flatten(0, 1)
    data = rows(activations, transformer=glassllm, hook=hook, tokens=ids, special=torch.zeros_like(ids, dtype=torch.bool))
    evaluation = Downstream(max_tokens=64 * 128)
    same, some, few = evaluation(plus_minus(sae, 128), data), evaluation(pca(data, 64), data), evaluation(pca(data, 4), data)
    logits = model(input_ids=ids).logits
    plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(same["ce_clean"], float(plain), rtol=0, atol=1e-4)
    assert abs(same["delta_ce"]) < 1e-4
    assert same["ce_clean"] < same["ce_unigram"] - 1.5  # its own domain: it knows far more than frequencies
    assert_close(same["ce_clean"], same["entropy_clean"], rtol=0, atol=0.15)  # its own samples: CE is its entropy
    assert same["ce_recovered"] > some["ce_recovered"] > few["ce_recovered"] > 0
    assert some["ce_recovered_mean"] > few["ce_recovered_mean"] > 0
