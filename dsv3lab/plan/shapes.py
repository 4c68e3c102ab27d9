"""Every array of a model with its shape, in closed form: what `dl.abstract` builds, without JAX."""

import math
from dataclasses import dataclass

from dsv3lab.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Arrays of one kind.

    part: of `Parameters.by_part`, or "mtp".
    name: its place in a layer or in the model.
    shape: of one of them, [in, out] where it is a matrix.
    copies: how many there are in the model.
    """

    part: str
    name: str
    shape: tuple[int, ...]
    copies: int

    @property
    def parameters(self) -> int:
        """Elements of all copies."""
        return math.prod(self.shape) * self.copies


def tensors(config: ModelConfig) -> tuple[Tensor, ...]:
    """All arrays of the main model, then those of the MTP modules, whose embedding and head are the main model's."""
    d, depth = config.hidden_size, config.num_nextn_predict_layers
    main = {
        "embedding": _some({"weight": (config.vocab_size, d)}, 1),
        "attention": _some(_attention(config), config.num_hidden_layers),
        "dense_ffn": _some(_swiglu(d, config.intermediate_size), config.num_dense_layers),
        "routed_experts": _some(_experts(config), config.num_moe_layers),
        "shared_experts": _some(_shared(config), config.num_moe_layers),
        "router": _some(_router(config), config.num_moe_layers),
        "norms": {**_some(_norms(d), config.num_hidden_layers), "final_norm": ((d,), 1)},
        "head": {} if config.tie_word_embeddings else _some({"weight": (d, config.vocab_size)}, 1),
    }
    module = {
        **{name: (d,) for name in ("embedding_norm", "hidden_norm", "norm")},
        "project": (2 * d, d),
        **_norms(d),
        **_attention(config),
        **_experts(config),
        **{f"shared_{name}": shape for name, shape in _shared(config).items()},
        **{f"router_{name}": shape for name, shape in _router(config).items()},
    }
    parts = {**main, "mtp": _some(module, depth)}
    return tuple(
        Tensor(part=part, name=name, shape=shape, copies=copies)
        for part, arrays in parts.items()
        for name, (shape, copies) in arrays.items()
        if copies
    )


def _some(shapes: dict[str, tuple[int, ...]], copies: int) -> dict[str, tuple[tuple[int, ...], int]]:
    return {name: (shape, copies) for name, shape in shapes.items()}


def _attention(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, heads, latent, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
    query = {} if rank is None else {"query_down": (d, rank), "query_norm": (rank,)}
    return {
        **query,
        "query_up": (rank or d, heads * config.qk_head_dim),
        "latent_down": (d, latent + config.qk_rope_head_dim),
        "latent_norm": (latent,),
        "latent_up": (latent, heads * (config.qk_nope_head_dim + config.v_head_dim)),
        "out": (heads * config.v_head_dim, d),
    }


def _swiglu(width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {"gate_up": (width, 2, inner), "down": (inner, width)}


def _experts(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    one = _swiglu(config.hidden_size, config.moe_intermediate_size)
    return {name: (config.n_routed_experts, *shape) for name, shape in one.items()}


def _shared(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    inner = config.n_shared_experts * config.moe_intermediate_size
    return _swiglu(config.hidden_size, inner) if inner else {}


def _router(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    bias = {"bias": (config.n_routed_experts,)} if config.has_router_bias else {}
    return {"weight": (config.hidden_size, config.n_routed_experts), **bias}


def _norms(width: int) -> dict[str, tuple[int, ...]]:
    return {"attention_norm": (width,), "ffn_norm": (width,)}
