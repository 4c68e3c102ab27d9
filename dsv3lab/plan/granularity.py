"""Experts of several sizes at equal cost, and in how many ways a token can choose among them (arXiv:2401.06066, 3)."""

from dataclasses import replace
from math import comb

from dsv3lab.config import ConfigError, ModelConfig


def expert_sets(config: ModelConfig) -> int:
    """How many different sets of routed experts a token can be sent to, exactly.

    Without groups C(N, K). With them only the sets that touch at most M of the groups count: for j groups that are all
    touched, inclusion and exclusion over the groups that are not.
    """
    size, chosen = config.n_routed_experts // config.n_group, config.num_experts_per_tok
    return sum(
        comb(config.n_group, j) * sum((-1) ** (j - i) * comb(j, i) * comb(i * size, chosen) for i in range(j + 1))
        for j in range(1, config.topk_group + 1)
    )


def granularities(config: ModelConfig, *, experts: int, top: int, split: int, shared: int) -> dict[str, ModelConfig]:
    """Three models whose experts hold the same parameters and cost a token the same FLOPs.

    "coarse" has `experts` of the width in `config`, of which each token takes `top`. "fine" has `split` times as many,
    `split` times narrower, of which it takes `split` times as many. In "fine and shared" the last `shared` of those
    serve every token and are not chosen. Only the routers differ in cost: they score more, or fewer, experts. Routing
    is without groups, and there are no MTP modules.

    Raises:
        ConfigError: if the width does not split, or if no routed expert would be left to choose.
    """
    width = config.moe_intermediate_size
    if width % split:
        raise ConfigError(f"moe_intermediate_size: experts of width {width} do not split into {split} equal parts")
    if shared >= top * split:
        raise ConfigError(f"shared: {shared} of the {top * split} experts of a token leave none to choose")
    plain = replace(config, n_group=1, topk_group=1, num_nextn_predict_layers=0, n_shared_experts=0)
    coarse = replace(plain, n_routed_experts=experts, num_experts_per_tok=top)
    narrow = {"n_routed_experts": experts * split, "num_experts_per_tok": top * split}
    fine = replace(plain, **narrow, moe_intermediate_size=width // split)
    rest = {name: count - shared for name, count in narrow.items()}
    return {"coarse": coarse, "fine": fine, "fine and shared": replace(fine, **rest, n_shared_experts=shared)}
