"""The shape of a DeepSeek-V3 model. Names are those of the released `config.json` (sizes: DeepSeek-V3 report, 4.2)."""

from dataclasses import dataclass
from typing import Literal

from dsv3lab.config.build import ConfigError, within


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN context extension (DeepSeek-V3 report 4.3; arXiv:2309.00071)."""

    factor: float = within(1.0, doc="context extension factor s")
    original_max_position_embeddings: int = within(1, unit="tokens", doc="context length before the extension")
    beta_fast: float = within(0.0, doc="rotations above which a frequency is kept")
    beta_slow: float = within(0.0, doc="rotations below which a frequency is interpolated")
    mscale: float = within(0.0, doc="scale of cos and sin, relative to mscale_all_dim")
    mscale_all_dim: float = within(0.0, doc="scale of the attention softmax, squared")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model: sizes, routing, positions, initialisation."""

    vocab_size: int = within(2, unit="tokens", doc="rows of the embedding and of the head")
    hidden_size: int = within(1, doc="model width d")
    num_hidden_layers: int = within(1, doc="main layers; MTP modules come on top")
    first_k_dense_replace: int = within(0, doc="leading layers with a dense FFN instead of experts")
    dense_layer_interval: int | None = within(
        1, unit="layers", doc="layers 0, n, 2n, ... have a dense FFN, too (null: only the leading ones)"
    )
    intermediate_size: int = within(1, doc="width of the dense SwiGLU")
    num_attention_heads: int = within(1, doc="heads n_h")
    q_lora_rank: int | None = within(1, doc="width of the compressed query d'_c (null: no compression)")
    kv_lora_rank: int = within(1, doc="width of the compressed key-value latent d_c")
    qk_nope_head_dim: int = within(1, doc="per-head query/key width without position d_h")
    qk_rope_head_dim: int = within(2, doc="width of the rotary key d_h^R, shared by all heads (even)")
    v_head_dim: int = within(1, doc="per-head value width")
    n_routed_experts: int = within(1, doc="routed experts N_r")
    n_shared_experts: int = within(0, doc="shared experts N_s, one SwiGLU of N_s x the expert width")
    num_experts_per_tok: int = within(1, doc="routed experts chosen for each token K_r")
    moe_intermediate_size: int = within(1, doc="width of one expert's SwiGLU")
    n_group: int = within(1, doc="expert groups (nodes)")
    topk_group: int = within(1, doc="groups that a token may reach M")
    scoring_func: Literal["sigmoid", "softmax"]
    """How an expert's affinity is computed: sigmoid in V3 (Eq. 15), softmax over all experts in V2."""
    topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"]
    """How experts are chosen: V3's biased scores in the groups with the best two; V2's scores in the groups with the best
    one; or the best scores of all, without groups (V2-Lite)."""
    norm_topk_prob: bool
    """Whether the gates of the chosen experts are normalised to sum to one (V3) or are their scores (V2)."""
    routed_scaling_factor: float = within(0.0, doc="factor on the gates (2.5 in the released V3, 16 in V2)")
    num_nextn_predict_layers: int = within(0, doc="MTP depth D")
    tie_word_embeddings: bool
    """Whether the head is the embedding, transposed."""
    rms_norm_eps: float = within(0.0, doc="epsilon of the layer norms")
    latent_norm_eps: float = within(0.0, doc="epsilon of the norms on the compressed query and key-value latents")
    rope_theta: float = within(1.0, doc="RoPE base")
    rope_scaling: YarnConfig | None
    max_position_embeddings: int = within(1, unit="tokens", doc="longest context")
    initializer_range: float = within(0.0, doc="standard deviation of the normal initialisation (0.006 in the report)")
    embedding_initializer_range: float = within(0.0, doc="the same for the embedding (0.006 in the report)")

    def __post_init__(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim: {self.qk_rope_head_dim} is odd; rotary pairs need an even width")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ConfigError(f"first_k_dense_replace: {self.first_k_dense_replace} is above num_hidden_layers")
        if self.n_routed_experts % self.n_group:
            raise ConfigError(f"n_group: {self.n_routed_experts} experts do not split into {self.n_group} equal groups")
        if self.topk_group > self.n_group:
            raise ConfigError(f"topk_group: {self.topk_group} is above n_group {self.n_group}")
        reachable = self.topk_group * self.n_routed_experts // self.n_group
        if self.num_experts_per_tok > reachable:
            raise ConfigError(
                f"num_experts_per_tok: {self.num_experts_per_tok} is above the {reachable} experts within reach"
            )
        if self.topk_method == "noaux_tc" and self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise ConfigError("n_group: the group score is the sum of two experts, so each group needs at least 2")
        if self.topk_method == "greedy" and self.n_group > 1:
            raise ConfigError(f"n_group: topk_method greedy knows no groups, so it must be 1, not {self.n_group}")

    @property
    def moe_layers(self) -> tuple[bool, ...]:
        """Of each layer of the main model whether it has experts."""
        every = self.dense_layer_interval
        return tuple(
            layer >= self.first_k_dense_replace and not (every is not None and layer % every == 0)
            for layer in range(self.num_hidden_layers)
        )

    @property
    def num_moe_layers(self) -> int:
        """MoE layers of the main model (MTP modules not counted)."""
        return sum(self.moe_layers)

    @property
    def num_dense_layers(self) -> int:
        """Layers of the main model with a dense FFN."""
        return self.num_hidden_layers - self.num_moe_layers

    @property
    def has_router_bias(self) -> bool:
        """Whether routers have a selection bias, which is V3's way to balance them."""
        return self.topk_method == "noaux_tc"

    @property
    def qk_head_dim(self) -> int:
        """Per-head width of queries and keys: the part without position and the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim
