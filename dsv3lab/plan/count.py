"""Parameters, FLOPs and key-value bytes of a configuration, in closed form (exact integers).

For the 671B shape the parameter counts equal those of the released checkpoint to the unit.
"""

from dataclasses import dataclass

from dsv3lab.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters.

    total: the main model, embedding and head included, MTP modules not.
    activated: those that one token uses: the chosen experts only, the head but not the embedding (which is a lookup);
        tied embeddings are the head.
    mtp: the MTP modules' own parameters; embedding and head are shared with the main model and not counted again.
    by_part: the main model by part; its values sum to `total`.
    """

    total: int
    activated: int
    mtp: int
    by_part: dict[str, int]


def attention_parameters(config: ModelConfig) -> int:
    """Parameters of one MLA layer: the projections and the norms of the two latents (report, Eq. 1-11)."""
    latent_norms = config.kv_lora_rank + (config.q_lora_rank or 0)
    return _attention_weights(config) + latent_norms


def expert_parameters(config: ModelConfig) -> int:
    """Parameters of one expert's SwiGLU."""
    return 3 * config.hidden_size * config.moe_intermediate_size


def router_parameters(config: ModelConfig) -> int:
    """Parameters of one router: the affinity matrix and, in V3, the selection bias."""
    return config.n_routed_experts * (config.hidden_size + config.has_router_bias)


def moe_layer_parameters(config: ModelConfig) -> int:
    """Parameters of one layer with experts, its two norms included."""
    experts = (config.n_routed_experts + config.n_shared_experts) * expert_parameters(config)
    return attention_parameters(config) + experts + router_parameters(config) + 2 * config.hidden_size


def parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of `config`, as a whole, by part, and as activated by one token."""
    d, layers = config.hidden_size, config.num_hidden_layers
    dense, moe = config.num_dense_layers, config.num_moe_layers
    by_part = {
        "embedding": config.vocab_size * d,
        "attention": layers * attention_parameters(config),
        "dense_ffn": dense * 3 * d * config.intermediate_size,
        "routed_experts": moe * config.n_routed_experts * expert_parameters(config),
        "shared_experts": moe * config.n_shared_experts * expert_parameters(config),
        "router": moe * router_parameters(config),
        "norms": layers * 2 * d + d,
        "head": 0 if config.tie_word_embeddings else config.vocab_size * d,
    }
    total = sum(by_part.values())
    idle = moe * (config.n_routed_experts - config.num_experts_per_tok) * expert_parameters(config)
    # One MTP module: a layer with experts, the projection of [embedding ; hidden], the two norms before it and its own.
    mtp = config.num_nextn_predict_layers * (moe_layer_parameters(config) + 2 * d * d + 3 * d)
    looked_up = 0 if config.tie_word_embeddings else by_part["embedding"]
    return Parameters(total=total, activated=total - idle - looked_up, mtp=mtp, by_part=by_part)


def flops_per_token(
    config: ModelConfig, *, sequence_length: int, mtp: bool = True, causal: bool = False, backward: bool = True
) -> int:
    """Useful matmul FLOPs for one token of a sequence of `sequence_length` tokens.

    Convention: a product of [m, k] and [k, n] is 2 m k n FLOPs; the backward pass is twice the forward. Counted: every
    projection, the router, the chosen and the shared experts (no padding, no dropped token, nothing recomputed), the
    scores and the weighted sum of attention, and the head once for the main model and once for each MTP depth.
    Excluded: embedding lookups, norms, softmax, activations, rotations, the choice of experts, losses, the optimizer.

    Args:
        sequence_length: tokens of one sequence, s.
        mtp: whether the MTP modules run; they compute every position, the last ones without a target too.
        causal: count only the (s + 1) / 2 keys that a query sees on average, instead of all s. Equality with a traced
            program holds for `False` and the whole square of scores (`attention` "reference").
        backward: count forward and backward (three times the forward) instead of the forward alone.
    """
    part = flops_by_part(config, sequence_length=sequence_length, causal=causal)
    experts = part["router"] + part["experts"]
    forward = config.num_hidden_layers * part["attention"] + config.num_moe_layers * experts + part["head"]
    forward += config.num_dense_layers * part["dense_ffn"]
    if mtp:
        forward += config.num_nextn_predict_layers * (part["mtp"] + part["head"])
    return 3 * forward if backward else forward


def flops_by_part(config: ModelConfig, *, sequence_length: int, causal: bool = False) -> dict[str, int]:
    """Forward FLOPs for one token of one part of each kind, in the convention of `flops_per_token`.

    "experts" are the chosen and the shared ones without their router; "mtp" is one module with its layer, without the
    head that it shares.
    """
    d = config.hidden_size
    keys_doubled = sequence_length + 1 if causal else 2 * sequence_length
    scores = keys_doubled * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    part = {
        "attention": 2 * _attention_weights(config) + scores,
        "dense_ffn": 2 * 3 * d * config.intermediate_size,
        "experts": 2 * (config.num_experts_per_tok + config.n_shared_experts) * expert_parameters(config),
        "router": 2 * d * config.n_routed_experts,
        "head": 2 * d * config.vocab_size,
    }
    return {**part, "mtp": 2 * 2 * d * d + part["attention"] + part["router"] + part["experts"]}


def kv_bytes_per_token(config: ModelConfig, *, bytes_per_element: int) -> int:
    """Bytes that MLA caches for one token in all main layers: the latent and the rotary key shared by the heads."""
    return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim) * bytes_per_element


def kv_bytes_per_token_mha(config: ModelConfig, *, bytes_per_element: int) -> int:
    """Bytes that multi-head attention with the same heads would cache for one token (V2 report, Table 1)."""
    return kv_bytes_per_token_gqa(config, groups=config.num_attention_heads, bytes_per_element=bytes_per_element)


def kv_bytes_per_token_gqa(config: ModelConfig, *, groups: int, bytes_per_element: int) -> int:
    """Bytes that grouped-query attention with `groups` key-value heads would cache for one token.

    A head's key is `qk_nope_head_dim` wide: without the decoupled key of MLA, the rotation acts on the key itself.
    """
    head = config.qk_nope_head_dim + config.v_head_dim
    return config.num_hidden_layers * groups * head * bytes_per_element


def _attention_weights(config: ModelConfig) -> int:
    """Elements of the matrices of one MLA layer."""
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    if config.q_lora_rank is None:
        query = d * heads * config.qk_head_dim
    else:
        query = config.q_lora_rank * (d + heads * config.qk_head_dim)
    down = d * (latent + config.qk_rope_head_dim)
    up = latent * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + down + up + heads * config.v_head_dim * d
