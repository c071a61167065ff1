"""What is searched, as it is written and as Optuna reads it."""

import pytest
from optuna import distributions as d

from sae_lightning.errors import InputError
from sae_lightning.sweeps.space import Choice, Interval, split


@pytest.mark.parametrize(
    ("word", "dimension", "distribution", "values"),
    [
        ("a=1,2,8", Choice({1: "1", 2: "2", 8: "8"}), d.CategoricalDistribution([1, 2, 8]), [1, 2, 8]),
        ("a=adam,'x y',null", Choice({"adam": "adam", "'x y'": "'x y'", None: "null"}),
         d.CategoricalDistribution(["adam", "'x y'", None]), ["adam", "'x y'", None]),
        ("a=[1,2],[3]", Choice({"[1,2]": "[1,2]", "[3]": "[3]"}), d.CategoricalDistribution(["[1,2]", "[3]"]), ["[1,2]", "[3]"]),
        ("a=true,false", Choice({True: "true", False: "false"}), d.CategoricalDistribution([True, False]), [True, False]),
        ("a=range(2,9,3)", Interval(2, 8, 3, True, False), d.IntUniformDistribution(2, 8, 3), [2, 5, 8]),
        ("a=range(0.5,2.1,0.5)", Interval(0.5, 2.0, 0.5, False, False), d.DiscreteUniformDistribution(0.5, 2.0, 0.5), [0.5, 1, 1.5, 2]),
        ("a=interval(0.5,2)", Interval(0.5, 2.0, None, False, False), d.UniformDistribution(0.5, 2.0), None),
        ("a=int(interval(2,4))", Interval(2, 4, 1, True, False), d.IntUniformDistribution(2, 4), [2, 3, 4]),
        ("a=tag(log,interval(1e-4,1))", Interval(1e-4, 1.0, None, False, True), d.LogUniformDistribution(1e-4, 1.0), None),
        ("a=tag(log,int(interval(4,64)))", Interval(4, 64, None, True, True), d.IntLogUniformDistribution(4, 64), None),
    ],
)  # fmt: skip
def test_a_word_with_several_values(word, dimension, distribution, values):
    space, fixed = split([word], {})
    assert (space, fixed) == ({"a": dimension}, [])
    assert space["a"].distribution() == distribution
    if values is None:
        with pytest.raises(InputError, match="has no single values"):
            dimension.values()
    else:
        assert dimension.values() == values


def test_what_is_typed_stands_instead_of_the_space():
    space, fixed = split(["b=7", "c=1,2", "+d=x"], {"a": "1,2", "b": "interval(0,1)", "c": "5,6", "e": "9"})
    assert list(space) == ["a", "c"]
    assert space["c"].values() == [1, 2]
    assert fixed == ["e=9", "b=7", "+d=x"]


def test_a_value_is_written_as_it_is_read():
    space, _ = split(["a=tag(log,interval(1e-7,1))", "b='x y',null"], {})
    assert float(space["a"].word(1.2345678901234567e-05)) == 1.2345678901234567e-05
    assert [space["b"].word(value) for value in space["b"].values()] == ["'x y'", "null"]


@pytest.mark.parametrize(("word", "said"), [("a=interval(2,1)", "from less to more"), ("a=tag(log,interval(0,1))", "begins above 0")])
def test_an_interval_that_is_none(word, said):
    with pytest.raises(InputError, match=said):
        split([word], {})
