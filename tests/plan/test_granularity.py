"""Expert layouts of equal cost, and how many sets of experts there are, by counting them all."""

from dataclasses import replace
from itertools import combinations

import pytest

import dsv3lab as dl
from dsv3lab import plan
from dsv3lab.config import ConfigError
from tests import builders


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("top", [1, 2, 3])
def test_sets_of_experts_are_those_that_can_be_listed(groups, top):
    total, reach = groups
    config = replace(
        builders.model_config(), n_routed_experts=12, n_group=total, topk_group=reach, num_experts_per_tok=top
    )
    within = [s for s in combinations(range(12), top) if len({i // (12 // total) for i in s}) <= reach]
    assert plan.expert_sets(config) == len(within)


def test_sets_of_experts_of_the_papers():
    # arXiv:2401.06066, 3.1: 120 sets of 2 of 16, and 4,426,165,368 sets of 8 of 64.
    layouts = plan.granularities(dl.config("nano"), experts=16, top=2, split=4, shared=1)
    assert [plan.expert_sets(one) for one in layouts.values()] == [120, 4_426_165_368, 553_270_671]


def test_layouts_hold_and_use_the_same_experts():
    layouts = plan.granularities(dl.config("nano"), experts=6, top=2, split=8, shared=3)
    kinds = [(c.num_experts_per_tok, c.n_routed_experts, c.n_shared_experts) for c in layouts.values()]
    assert kinds == [(2, 6, 0), (16, 48, 0), (13, 45, 3)]
    held, used, rest = set(), set(), set()
    for config in layouts.values():
        parts = plan.parameters(config).by_part
        held.add(parts["routed_experts"] + parts["shared_experts"])
        used.add((config.num_experts_per_tok + config.n_shared_experts) * plan.expert_parameters(config))
        router = 3 * 2 * config.num_moe_layers * config.hidden_size * config.n_routed_experts
        rest.add(plan.flops_per_token(config, sequence_length=64) - router)
    assert len(held) == len(used) == len(rest) == 1


def test_what_does_not_split_is_refused():
    with pytest.raises(ConfigError, match="width 128 do not split into 3 equal parts"):
        plan.granularities(dl.config("nano"), experts=16, top=2, split=3, shared=1)
    with pytest.raises(ConfigError, match="shared: 4 of the 4 experts of a token leave none to choose"):
        plan.granularities(dl.config("nano"), experts=16, top=2, split=2, shared=4)
