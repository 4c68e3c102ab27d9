"""Which experts a token goes to, and how even that is (DeepSeek-V3 report 2.1.2, Eq. 12-20)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.layers import normal


def select(
    scores: Float[Array, "tokens experts"],
    bias: Float[Array, " experts"],
    *,
    top: int,
    groups: int,
    top_groups: int,
) -> Int[Array, "tokens top"]:
    """The experts of each token: top-k of score plus bias within the best groups; of equal values the lower index.

    A group's score is the sum of its two largest biased scores. Excluded groups get minus infinity: a zero would win
    against negative biased scores.
    """
    biased = scores + bias
    if top_groups < groups:
        grouped = biased.reshape(*biased.shape[:-1], groups, -1)
        group_score = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1)
        _, chosen = jax.lax.top_k(group_score, top_groups)
        reachable = jnp.any(chosen[..., None] == jnp.arange(groups), axis=-2)
        biased = jnp.where(reachable[..., None], grouped, -jnp.inf).reshape(biased.shape)
    return jax.lax.top_k(biased, top)[1]


def gate_weights(
    scores: Float[Array, "tokens experts"], ids: Int[Array, "tokens top"], *, scale: float
) -> Float[Array, "tokens top"]:
    """The unbiased scores of the chosen experts, normalised to sum to `scale` (+1e-20 as in the released code)."""
    # A masked sum instead of a gather: its transpose is not a scatter. And not a product: this is no matmul to count.
    chosen = ids[..., None] == jnp.arange(scores.shape[-1])
    weights = jnp.sum(jnp.where(chosen, scores[:, None, :], 0), axis=-1)
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20) * scale


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


class Router(eqx.Module):
    """Sigmoid affinity to each expert's centroid, in float32, and the selection bias, which no gradient reaches."""

    weight: Float[Array, "*stack width experts"]
    bias: Float[Array, "*stack experts"]
    top: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    top_groups: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "Router":
        """Normal centroids, bias zero."""
        shape = (config.hidden_size, config.n_routed_experts)
        return Router(
            weight=normal(key, shape, std=config.initializer_range),
            bias=jnp.zeros(config.n_routed_experts, jnp.float32),
            top=config.num_experts_per_tok,
            groups=config.n_group,
            top_groups=config.topk_group,
            scale=config.routed_scaling_factor,
        )

    def scores(self, x: Float[Array, "tokens width"]) -> Float[Array, "tokens experts"]:
        """s = sigmoid(x . centroid), float32 whatever the compute dtype: in bf16 near ties flip experts."""
        return jax.nn.sigmoid(x.astype(jnp.float32) @ self.weight.astype(jnp.float32))

    def __call__(
        self, scores: Float[Array, "tokens experts"]
    ) -> tuple[Int[Array, "tokens top"], Float[Array, "tokens top"]]:
        """Chosen experts and their gates."""
        ids = select(
            jax.lax.stop_gradient(scores),
            jax.lax.stop_gradient(self.bias),
            top=self.top,
            groups=self.groups,
            top_groups=self.top_groups,
        )
        return ids, gate_weights(scores, ids, scale=self.scale)
