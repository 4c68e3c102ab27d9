"""Bytes of a training step in closed form: what goes in and out, and what recomputation leaves to keep.

Exact, as integers; what a compiler needs in between (its temporaries) is no part of it.
"""

from typing import Literal

from dsv3lab.config import ModelConfig, TrainConfig, repeating_units
from dsv3lab.plan.count import parameters

WORD = 4
"""Bytes of a float32 or int32."""
WORD_OF = {"float32": 4, "bfloat16": 2}
"""Bytes of a number by its format."""
_COUNTERS = 3
"""Steps done, updates of Adam and updates of the schedule."""


def state_bytes(config: ModelConfig, train: TrainConfig) -> dict[str, int]:
    """The state of training by part: float32 weights, router biases, both moments of AdamW, counters.

    The moments stand over everything but the router biases, which the optimizer never sees.
    """
    counts = parameters(config)
    layers = config.num_moe_layers + config.num_nextn_predict_layers
    biases = layers * config.n_routed_experts * config.has_router_bias
    weights = counts.total + counts.mtp - biases
    moment = WORD_OF[train.optimizer.moments]
    return {
        "weights": WORD * weights,
        "router biases": WORD * biases,
        "moments": 2 * moment * weights,
        "counters": WORD * _COUNTERS,
    }


def batch_bytes(sequences: int, *, sequence_length: int) -> int:
    """Token ids of a batch; a window holds one token more than targets."""
    return WORD * sequences * (sequence_length + 1)


def metrics_bytes(config: ModelConfig) -> int:
    """What a step returns beside the state: six numbers, dead experts, and MaxVio and loads of each MoE layer."""
    layers = config.num_moe_layers + config.num_nextn_predict_layers
    return WORD * (7 + layers * (1 + config.n_routed_experts))


def residual_bytes(
    config: ModelConfig,
    *,
    remat: Literal["full", "products", "report"],
    sequences: int,
    sequence_length: int,
    activations: Literal["float32", "bfloat16"] = "float32",
) -> dict[str, int]:
    """What a gradient keeps for its backward pass beside its arguments, by part; layers in a scan.

    layers: of each unit of blocks its input, and what the policy keeps (`dsv3lab.parallel.remat`): the outputs of the
        products that something in the unit reads again. The last products of a unit are read by the next one only,
        which keeps its input; those of the blocks before the last one of a unit are kept.
    mtp: the same of the MTP modules, whose unit begins with the joined states and ends with a norm, for which the last
        products are kept, too.
    head: the loss makes the gradient of the head, in float32, and of the hidden states on its way forward.
    rest: in float32, norms outside the units (three arrays of the states' size, two numbers for each token, the scale), rotary
        angles, token ids and a mask of one byte for each token and MTP module.

    Args:
        config: the model.
        remat: the policy. "none" has no closed form: what it keeps is a matter of how JAX differentiates each operation,
            and counted in the traced program (`dsv3lab.program.residuals`).
        sequences: sequences of one micro-batch.
        sequence_length: targets of one of them.
        activations: their format. Weights are float32. Products in FP8 change nothing: what they keep beside it is made anew.
    """
    size = WORD_OF[activations]
    d, tokens, depths = config.hidden_size, sequences * sequence_length, config.num_nextn_predict_layers
    attention, inner, last = _kept(config, remat)
    units = sum(
        repeats * (d + sum(attention + inner[moe] for moe in unit) + sum(last[moe] for moe in unit[:-1]))
        for unit, repeats in repeating_units(config.moe_layers)
    )
    joined = 2 * d + attention + inner[True] + last[True]
    outside = 1 + 2 * depths  # the final norm, and those of hidden state and embedding before each MTP module
    return {
        "layers": size * tokens * units,
        "mtp": size * tokens * depths * joined,
        "head": (1 + depths) * (WORD * d * config.vocab_size + size * tokens * d),
        "rest": WORD
        * (outside * (3 * tokens * d + 2 * tokens + d) + sequence_length * config.qk_rope_head_dim + tokens)
        + depths * tokens,
    }


def _kept(config: ModelConfig, remat: str) -> tuple[int, dict[bool, int], dict[bool, int]]:
    """Numbers kept for each token by attention, within a feed-forward layer, and of its last products.

    Of the layer without experts (False) and with them (True).
    """
    if remat == "full":
        return 0, {False: 0, True: 0}, {False: 0, True: 0}
    d, heads = config.hidden_size, config.num_attention_heads
    query_up, latent_up = heads * config.qk_head_dim, heads * (config.qk_nope_head_dim + config.v_head_dim)
    ups = query_up + latent_up if remat == "products" else 0
    down = (config.q_lora_rank or 0) + config.kv_lora_rank + config.qk_rope_head_dim
    attention = down + ups + heads * config.v_head_dim + d
    shared, top = config.n_shared_experts, config.num_experts_per_tok
    inner = {False: 2 * config.intermediate_size, True: 2 * config.moe_intermediate_size * (shared + top)}
    return attention, inner, {False: d, True: d * (top + bool(shared))}
