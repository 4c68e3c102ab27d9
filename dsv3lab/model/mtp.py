"""Multi-token prediction (DeepSeek-V3 report 2.2, Eq. 21-25). Alignment: MTP.md beside this file."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.block import Block, Context, Routed
from dsv3lab.model.execution import Execution
from dsv3lab.model.layers import RMSNorm, normal


def ahead(
    embedded: Float[Array, "batch seq width"],
    filler: Float[Array, " width"],
    segments: Int[Array, "batch seq"] | None,
    *,
    depth: int,
) -> tuple[Float[Array, "batch seq width"], Bool[Array, "batch seq"]]:
    """Emb(t_{i+depth}) at each position i, and where that token exists (and lies in the same segment).

    Elsewhere the embedding is `filler`, that of token 0. The shift is taken of the embeddings that the main model
    has looked up already, so the embedding table gets one gradient scatter and not one for each depth.
    """
    batch, seq, width = embedded.shape
    exists = jnp.arange(seq) < seq - depth
    valid = jnp.broadcast_to(exists, (batch, seq))
    tail = jnp.broadcast_to(filler, (batch, depth, width))
    shifted = jnp.concatenate([embedded[:, depth:], tail], axis=1)
    if segments is not None:
        valid = valid & (jnp.roll(segments, -depth, axis=1) == segments)
        shifted = jnp.where(valid[..., None], shifted, filler)
    return shifted, valid


class MTP(eqx.Module):
    """The module of one depth: joins the previous depth's hidden state with the next known token.

    `project` is [2 width, width], embedding half first: [enorm(embedding); hnorm(hidden)] is the order of the
    released checkpoints, while Eq. 21 writes the hidden state first.
    """

    embedding_norm: RMSNorm
    hidden_norm: RMSNorm
    project: Float[Array, "two_width width"]
    block: Block
    norm: RMSNorm

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "MTP":
        """One module with an MoE block of its own; embedding and head are the main model's."""
        width, eps = config.hidden_size, config.rms_norm_eps
        key_project, key_block = jax.random.split(key)
        return MTP(
            embedding_norm=RMSNorm.init(width, eps=eps),
            hidden_norm=RMSNorm.init(width, eps=eps),
            project=normal(key_project, (2 * width, width), std=config.initializer_range),
            block=Block.init(config, moe=True, key=key_block),
            norm=RMSNorm.init(width, eps=eps),
        )

    def __call__(
        self,
        hidden: Float[Array, "batch seq width"],
        embedded: Float[Array, "batch seq width"],
        context: Context,
        *,
        key: PRNGKeyArray | None,
        capture: frozenset[str],
        execution: Execution,
    ) -> tuple[Float[Array, "batch seq width"], Routed | None, dict[str, Array]]:
        """The normed hidden state of this depth, from the previous depth's normed one and the embeddings ahead."""
        joined = jnp.concatenate([self.embedding_norm(embedded), self.hidden_norm(hidden)], axis=-1)

        def run(
            joined: Array, module: MTP, context: Context, key: PRNGKeyArray | None
        ) -> tuple[Array, Routed | None, dict[str, Array]]:
            module = execution.gather_params(module)
            h = execution.matmul(joined, module.project, place="mtp.project")
            h, routed, captured = module.block(h, context, key=key, capture=capture, execution=execution)
            return module.norm(h), routed, captured

        return execution.remat(run)(joined, self, context, key)
