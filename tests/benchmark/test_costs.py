import pytest

from eomt_d2.analysis import build_meta_model, network_complexity
from eomt_d2.benchmark.costs import network_costs
from eomt_d2.benchmark.plan import Point, at_point
from eomt_d2.errors import UserError
from tests.benchmark.models import EOMT, MASK2FORMER, tiny

# eomt_tiny at 64 pixels: 64 patches and 5 prefix tokens through 6 blocks of 64 channels, the last
# two also with 20 queries.
ATTENTION = 2 * 64 * (4 * 69**2 + 2 * 89**2)


def costs_of(config, **kwargs):
    (model,), _ = tiny(config)
    return network_costs(at_point(model.cfg, Point(size=64)), 64, 64, **kwargs)


def test_products_of_attention_by_hand():
    costs = costs_of(EOMT)
    assert costs.attention_macs == ATTENTION
    assert costs.masked is False


def test_the_rest_is_what_the_analysis_counts():
    (model,), _ = tiny(EOMT)
    meta = build_meta_model(model.cfg)
    for masked in (False, True):
        expected = network_complexity(meta, 64, 64, masked=masked)[""]
        costs = costs_of(EOMT, masked=masked)
        assert (costs.parameters, costs.macs, costs.masked) == (*expected, masked)


def test_a_training_counts_as_masked():
    assert costs_of(EOMT, training=True) == costs_of(EOMT, masked=True)


def test_mask2former_stays_masked():
    costs = costs_of(MASK2FORMER)
    assert costs.masked is True
    # Its ViT has no queries.
    assert costs.attention_macs == 2 * 64 * 6 * 69**2


def test_a_size_that_the_network_cannot_take():
    (model,), _ = tiny(EOMT)
    with pytest.raises(UserError, match="60 x 60 pixels does not fit this network"):
        network_costs(model.cfg, 60, 60)
