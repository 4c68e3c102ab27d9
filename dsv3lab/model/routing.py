"""Which experts a token goes to, and how even that is (DeepSeek-V3 report 2.1.2, Eq. 12-20)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.layers import normal


def select(
    scores: Float[Array, "tokens experts"],
    bias: Float[Array, " experts"] | None,
    *,
    top: int,
    groups: int,
    top_groups: int,
    group_best: int = 2,
) -> Int[Array, "tokens top"]:
    """The experts of each token: top-k of score plus bias within the best groups; of equal values the lower index.

    A group's score is the sum of its `group_best` largest biased scores: two in V3, one in V2. Excluded groups get minus
    infinity: a zero would win against negative biased scores.
    """
    biased = scores if bias is None else scores + bias
    if top_groups < groups:
        grouped = biased.reshape(*biased.shape[:-1], groups, -1)
        group_score = jnp.sum(jax.lax.top_k(grouped, group_best)[0], axis=-1)
        _, chosen = jax.lax.top_k(group_score, top_groups)
        reachable = jnp.any(chosen[..., None] == jnp.arange(groups), axis=-2)
        biased = jnp.where(reachable[..., None], grouped, -jnp.inf).reshape(biased.shape)
    return jax.lax.top_k(biased, top)[1]


def gate_weights(
    scores: Float[Array, "tokens experts"], ids: Int[Array, "tokens top"], *, scale: float, normalise: bool = True
) -> Float[Array, "tokens top"]:
    """The unbiased scores of the chosen experts times `scale`, normalised before (+1e-20 as in the released code)."""
    # A masked sum instead of a gather: its transpose is not a scatter. And not a product: this is no matmul to count.
    chosen = ids[..., None] == jnp.arange(scores.shape[-1])
    weights = jnp.sum(jnp.where(chosen, scores[:, None, :], 0), axis=-1)
    if normalise:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return weights * scale


def expert_loads(
    ids: Int[Array, "tokens top"], valid: Bool[Array, " tokens"] | None, *, num_experts: int
) -> Int[Array, " experts"]:
    """Tokens that each expert received, int32, counted from the selection itself; invalid tokens do not count."""
    chosen = jnp.any(ids[..., None] == jnp.arange(num_experts), axis=-2)
    if valid is not None:
        chosen = chosen & valid[:, None]
    return jnp.sum(chosen, axis=0, dtype=jnp.int32)


def balance_loss(
    scores: Float[Array, "batch seq experts"], valid: Bool[Array, "batch seq"] | None, *, top: int
) -> Float[Array, ""]:
    """Mean over sequences of sum_i f_i P_i (Eq. 17-20, without alpha); exactly 1 for a uniform router.

    f counts the top-k of the UNBIASED scores of all experts, without the group limit, as Eq. 18 is written: it says
    what the scores ask for, not what bias and group limit made of it. Only P carries a gradient. Invalid tokens
    count neither in f nor in P nor in T.
    """
    experts = scores.shape[-1]
    mask = jnp.ones(scores.shape[:2], scores.dtype) if valid is None else valid.astype(scores.dtype)
    length = jnp.sum(mask, axis=1)[:, None]
    _, ids = jax.lax.top_k(jax.lax.stop_gradient(scores), top)
    wanted = jnp.any(ids[..., None] == jnp.arange(experts), axis=-2)
    f = jnp.sum(wanted * mask[..., None], axis=1) * experts / (top * jnp.maximum(length, 1))
    share = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    p = jnp.sum(share * mask[..., None], axis=1) / jnp.maximum(length, 1)
    return jnp.mean(jnp.sum(f * p, axis=-1))


class Auxiliary(eqx.Module):
    """Balance losses of other papers, of one layer or summed over layers, without their weights; 1 for even routing.

    switch: E sum_i f_i P_i over all tokens at once (Switch Transformer, arXiv:2101.03961, Eq. 4-6, for top-k).
    expert: V2's expert-level loss (DeepSeek-V2 report, Eq. 23-25): the same by sequence, of the experts really chosen.
    device: V2's device-level loss (Eq. 26-28): of groups of experts.
    communication: V2's communication loss (Eq. 29-31): of the groups that tokens are sent to.
    """

    switch: Float[Array, "*layers"]
    expert: Float[Array, "*layers"]
    device: Float[Array, "*layers"]
    communication: Float[Array, "*layers"]


def auxiliary_losses(
    scores: Float[Array, "batch seq experts"],
    ids: Int[Array, "batch seq top"],
    valid: Bool[Array, "batch seq"] | None,
    *,
    groups: int,
    top_groups: int,
) -> Auxiliary:
    """The losses of `Auxiliary` for one layer; invalid tokens count nowhere.

    Sigmoid scores are normalised to sum to one first, as V3 does in its own loss. Only the scores carry a gradient.
    """
    experts, top = scores.shape[-1], ids.shape[-1]
    mask = jnp.ones(scores.shape[:2], scores.dtype) if valid is None else valid.astype(scores.dtype)
    share = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20) * mask[..., None]
    chosen = jnp.any(ids[..., None] == jnp.arange(experts), axis=-2) * mask[..., None]
    sent = jnp.any(chosen.reshape(*chosen.shape[:2], groups, -1) > 0, axis=-1)
    length = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
    f, p = jnp.sum(chosen, axis=1) * experts / (top * length), jnp.sum(share, axis=1) / length
    by_group = p.reshape(-1, groups, experts // groups).sum(axis=-1)
    arrived = jnp.sum(sent, axis=1) * groups / (top_groups * length)
    tokens = jnp.maximum(jnp.sum(mask), 1)
    everywhere = jnp.sum(chosen, axis=(0, 1)) * experts / (top * tokens), jnp.sum(share, axis=(0, 1)) / tokens
    return Auxiliary(
        switch=jnp.sum(everywhere[0] * everywhere[1]),
        expert=jnp.mean(jnp.sum(f * p, axis=-1)),
        device=jnp.mean(jnp.sum(f.reshape(-1, groups, experts // groups).mean(axis=-1) * by_group, axis=-1)),
        communication=jnp.mean(jnp.sum(arrived * by_group, axis=-1)),
    )


class Router(eqx.Module):
    """Affinity to each expert's centroid, in float32, and V3's selection bias, which no gradient reaches."""

    weight: Float[Array, "*stack width experts"]
    bias: Float[Array, "*stack experts"] | None
    top: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    top_groups: int = eqx.field(static=True)
    group_best: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    normalise: bool = eqx.field(static=True)
    softmax: bool = eqx.field(static=True)

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "Router":
        """Normal centroids, bias zero where there is one."""
        shape = (config.hidden_size, config.n_routed_experts)
        return Router(
            weight=normal(key, shape, std=config.initializer_range),
            bias=jnp.zeros(config.n_routed_experts, jnp.float32) if config.has_router_bias else None,
            top=config.num_experts_per_tok,
            groups=config.n_group,
            top_groups=config.topk_group,
            group_best=1 if config.topk_method == "group_limited_greedy" else 2,
            scale=config.routed_scaling_factor,
            normalise=config.norm_topk_prob,
            softmax=config.scoring_func == "softmax",
        )

    def scores(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens experts"]:
        """s = sigmoid(x . centroid), or V2's softmax, in float32 whatever the compute dtype: in bf16 near ties flip experts."""
        affinity = x.astype(jnp.float32) @ self.weight.astype(jnp.float32)
        return jax.nn.softmax(affinity, axis=-1) if self.softmax else jax.nn.sigmoid(affinity)

    def __call__(
        self, scores: Float[Array, "tokens experts"]
    ) -> tuple[Int[Array, "tokens top"], Float[Array, "tokens top"]]:
        """Chosen experts and their gates."""
        ids = select(
            jax.lax.stop_gradient(scores),
            None if self.bias is None else jax.lax.stop_gradient(self.bias),
            top=self.top,
            groups=self.groups,
            top_groups=self.top_groups,
            group_best=self.group_best,
        )
        return ids, gate_weights(scores, ids, scale=self.scale, normalise=self.normalise)
