import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.testing import assert_close

from circuitkeep.penalties import (
    BehaviourKL,
    HeadOutputDrift,
    HeadScoreFloor,
    PatternDivergence,
    Sum,
)


def test_equals_the_weighted_terms(parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    terms = {"pattern": PatternDivergence("js"), "floor": HeadScoreFloor(0.0)}
    total = Sum(terms, {"floor": 3.0})
    by_hand = terms["pattern"](now, reference, labels) + 3 * terms["floor"](now, reference, labels)
    assert_close(total(now, reference, labels), by_hand)


def test_terms_are_logged_without_their_weights(parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    total = Sum({"pattern": PatternDivergence(), "behaviour": BehaviourKL()}, {"pattern": 2.0})
    terms = total.terms_of(now, reference, labels)
    assert list(terms) == ["pattern", "behaviour"]
    assert terms["pattern"] == PatternDivergence()(now, reference, labels)
    by_hand = 2 * terms["pattern"] + terms["behaviour"]
    assert total.weigh(terms) == total(now, reference, labels) == by_hand


def test_a_term_of_weight_0_costs_nothing(parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    pattern = PatternDivergence()
    total = Sum({"pattern": pattern, "behaviour": BehaviourKL()}, {"behaviour": 0.0})
    assert total.needs == {"pattern"}, "no unembedding for it"
    assert list(total.terms_of(now, reference, labels)) == ["pattern"]
    assert total(now, reference, labels) == pattern(now, reference, labels)
    with pytest.raises(ValueError, match="every term of the Sum has weight 0"):
        Sum({"pattern": pattern}, {"pattern": 0.0})


def test_needs_and_queries_are_those_of_any_term():
    total = Sum({"pattern": PatternDivergence(), "behaviour": BehaviourKL()})
    assert total.needs == {"pattern", "log_probs"}
    assert not total.all_queries
    outer = Sum({"inner": total, "output": HeadOutputDrift("result", queries="all")})
    assert outer.needs == {"pattern", "log_probs", "result"}
    assert outer.all_queries


def test_built_from_a_config(parameters, labels):
    config = OmegaConf.create(
        """
        _target_: circuitkeep.penalties.Sum
        terms:
          pattern: {_target_: circuitkeep.penalties.PatternDivergence, kind: js}
          output: {_target_: circuitkeep.penalties.HeadOutputDrift, site: result}
        weights: {pattern: 0.5}
        """
    )
    total = instantiate(config)
    assert total.weights == {"pattern": 0.5, "output": 1.0}
    assert total.needs == {"pattern", "result"}
    now, reference = (parameters(s).activations() for s in (1, 0))
    assert total(now, reference, labels) > 0


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({}, None, "at least one term"),
        ({"pattern": PatternDivergence()}, {"patern": 1.0}, "'patern'; the terms are pattern"),
        ({"pattern": PatternDivergence()}, {"pattern": -1.0}, "weight of 'pattern' is -1.0"),
        ({"pattern": PatternDivergence()}, {"pattern": float("inf")}, "'pattern' is inf"),
        ({"a.b": PatternDivergence()}, None, "cannot be named 'a.b'"),
        (
            {"a": HeadOutputDrift("z"), "b": HeadOutputDrift("result")},
            None,
            "give all the same site",
        ),
    ],
)
def test_what_cannot_be_summed_is_refused(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        Sum(terms, weights)
