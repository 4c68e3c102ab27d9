"""The shape of a DeepSeek-V3 model. Names are those of the released `config.json` (sizes: DeepSeek-V3 report, 4.2)."""

from dataclasses import dataclass
from typing import Literal

from dsv3lab.config.build import ConfigError, within


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN context extension (DeepSeek-V3 report 4.3; arXiv:2309.00071)."""

    factor: float = within(1.0, doc="context extension factor s [report 4.3]")
    original_max_position_embeddings: int = within(
        1, unit="tokens", doc="context length before the extension [report 4.3]"
    )
    beta_fast: float = within(0.0, doc="rotations above which a frequency is kept [report 4.3]")
    beta_slow: float = within(0.0, doc="rotations below which a frequency is interpolated [report 4.3]")
    mscale: float = within(0.0, doc="scale of cos and sin, relative to mscale_all_dim [report 4.3]")
    mscale_all_dim: float = within(0.0, doc="scale of the attention softmax, squared [report 4.3]")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model: sizes, routing, positions, initialisation."""

    vocab_size: int = within(2, unit="tokens", doc="rows of the embedding and of the head [report 4.1]")
    hidden_size: int = within(1, doc="model width d [report 4.2]")
    num_hidden_layers: int = within(1, doc="main layers; MTP modules come on top [report 4.2]")
    first_k_dense_replace: int = within(0, doc="leading layers with a dense FFN instead of experts [report 4.2]")
    dense_layer_interval: int | None = within(
        1, unit="layers", doc="layers 0, n, 2n, ... have a dense FFN, too (null: only the leading ones)"
    )
    intermediate_size: int = within(1, doc="width of the dense SwiGLU [released config.json]")
    num_attention_heads: int = within(1, doc="heads n_h [report 2.1.1, 4.2]")
    q_lora_rank: int | None = within(
        1, doc="width of the compressed query d'_c (null: no compression) [report 2.1.1, Eq. 6, 4.2]"
    )
    kv_lora_rank: int = within(1, doc="width of the compressed key-value latent d_c [report 2.1.1, Eq. 1, 4.2]")
    qk_nope_head_dim: int = within(1, doc="per-head query/key width without position d_h [report 2.1.1, Eq. 2, 4.2]")
    qk_rope_head_dim: int = within(
        2, doc="width of the rotary key d_h^R, shared by all heads (even) [report 2.1.1, Eq. 3, 4.2]"
    )
    v_head_dim: int = within(1, doc="per-head value width [report 2.1.1, Eq. 5, 4.2]")
    n_routed_experts: int = within(1, doc="routed experts N_r [report 2.1.2, Eq. 12, 4.2]")
    n_shared_experts: int = within(
        0, doc="shared experts N_s, one SwiGLU of N_s x the expert width [report 2.1.2, Eq. 12, 4.2]"
    )
    num_experts_per_tok: int = within(1, doc="routed experts chosen for each token K_r [report 2.1.2, Eq. 14, 4.2]")
    moe_intermediate_size: int = within(1, doc="width of one expert's SwiGLU [report 4.2]")
    n_group: int = within(1, doc="expert groups (nodes) [report 2.1.2, 4.2]")
    topk_group: int = within(1, doc="groups that a token may reach M [report 2.1.2, 4.2]")
    scoring_func: Literal["sigmoid", "softmax"]
    """How an expert's affinity is computed: sigmoid in V3 (Eq. 15), softmax over all experts in V2 [report 2.1.2, Eq. 15]."""
    topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"]
    """How experts are chosen: V3's biased scores in the groups with the best two; V2's scores in the groups with the best
    one; or the best scores of all, without groups (V2-Lite) [report 2.1.2, Eq. 14]."""
    norm_topk_prob: bool
    """Whether the gates of the chosen experts are normalised to sum to one, as in V3 (V2: no) [report 2.1.2, Eq. 13]."""
    routed_scaling_factor: float = within(
        0.0, doc="factor on the gates (2.5 in the released V3, 16 in V2) [report Eq. 13]"
    )
    num_nextn_predict_layers: int = within(0, doc="MTP depth D [report 2.2, 4.2]")
    tie_word_embeddings: bool
    """Whether the head is the embedding, transposed."""
    rms_norm_eps: float = within(0.0, doc="epsilon of the layer norms [released config.json]")
    latent_norm_eps: float = within(
        0.0, doc="epsilon of the norms on the compressed query and key-value latents [released code]"
    )
    rope_theta: float = within(1.0, doc="RoPE base [released config.json]")
    rope_scaling: YarnConfig | None
    max_position_embeddings: int = within(1, unit="tokens", doc="longest context [report 4.3]")
    initializer_range: float = within(
        0.0, doc="standard deviation of the normal initialisation (0.006 in the report) [report 4.2]"
    )
    embedding_initializer_range: float = within(
        0.0, doc="the same for the embedding (0.006 in the report) [report 4.2]"
    )

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


def repeating_units(kinds: tuple[bool, ...]) -> list[tuple[tuple[bool, ...], int]]:
    """Layers as units of blocks and how often each is repeated, in order, with the fewest blocks in all units together.

    (dense, dense, dense, moe, moe, ...) is (dense) x 3 and (moe) x the rest; (dense, moe, moe, dense, moe, moe) is
    (dense, moe, moe) x 2. Of equal choices the one with the fewest units, the first repeated most.
    """
    best: list[list[tuple[tuple[bool, ...], int]]] = [[] for _ in range(len(kinds) + 1)]  # of the layers from here on
    for first in reversed(range(len(kinds))):
        rest, choices = kinds[first:], []
        for size in range(1, len(rest) + 1):
            times = 1
            while rest[size * times : size * (times + 1)] == rest[:size]:
                times += 1
            choices += [[(rest[:size], n), *best[first + size * n]] for n in range(times, 0, -1)]
        best[first] = min(choices, key=lambda units: (sum(len(u) for u, _ in units), len(units), -units[0][1]))
    return best[0]
