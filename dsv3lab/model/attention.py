"""Multi-head latent attention, training path (DeepSeek-V3 report 2.1.1, Eq. 1-11)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.execution import LOCAL, Execution
from dsv3lab.model.layers import RMSNorm, dropout, normal
from dsv3lab.model.rope import rotary_angles, rotate, softmax_scale


class MLA(eqx.Module):
    """Attention whose keys and values come from one small latent and one shared rotary key.

    The number of heads is read from the arrays, so that a shard with fewer heads is the same code.
    """

    query_down: Float[Array, "*stack width query_rank"] | None
    query_norm: RMSNorm | None
    query_up: Float[Array, "*stack query_rank heads_qk"]
    latent_down: Float[Array, "*stack width latent_rope"]
    latent_norm: RMSNorm
    latent_up: Float[Array, "*stack latent heads_kv"]
    out: Float[Array, "*stack heads_v width"]
    nope: int = eqx.field(static=True)
    rope: int = eqx.field(static=True)
    value: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    @staticmethod
    def init(config: ModelConfig, *, key: PRNGKeyArray) -> "MLA":
        """MLA of the given sizes; without `q_lora_rank` queries come straight from the hidden state, as in V2-Lite."""
        width, heads, std = config.hidden_size, config.num_attention_heads, config.initializer_range
        keys = jax.random.split(key, 5)
        query_rank = config.q_lora_rank
        latent = config.kv_lora_rank
        per_head = config.qk_nope_head_dim + config.v_head_dim
        return MLA(
            query_down=None if query_rank is None else normal(keys[0], (width, query_rank), std=std),
            query_norm=None if query_rank is None else RMSNorm.init(query_rank, eps=config.latent_norm_eps),
            query_up=normal(keys[1], (query_rank or width, heads * config.qk_head_dim), std=std),
            latent_down=normal(keys[2], (width, latent + config.qk_rope_head_dim), std=std),
            latent_norm=RMSNorm.init(latent, eps=config.latent_norm_eps),
            latent_up=normal(keys[3], (latent, heads * per_head), std=std),
            out=normal(keys[4], (heads * config.v_head_dim, width), std=std),
            nope=config.qk_nope_head_dim,
            rope=config.qk_rope_head_dim,
            value=config.v_head_dim,
            scale=softmax_scale(config),
        )

    def __call__(
        self,
        x: Float[Array, "batch seq width"],
        *,
        cos: Float[Array, "#batch seq half"],
        sin: Float[Array, "#batch seq half"],
        segments: Int[Array, "batch seq"] | None,
        key: PRNGKeyArray | None = None,
        execution: Execution,
    ) -> Float[Array, "batch seq width"]:
        """The layer's output for a normed input; the latent's norm leaves the rotary key alone, as in the released code.

        `key` is that of the dropout on the heads' mixed values; `None`: nothing is dropped.
        """
        batch, seq, _ = x.shape
        matmul = execution.matmul
        compressed = x
        if self.query_down is not None and self.query_norm is not None:
            compressed = self.query_norm(matmul(x, self.query_down, place="attention.query_down"))
        query = matmul(compressed, self.query_up, place="attention.query_up").reshape(
            batch, seq, -1, self.nope + self.rope
        )
        query = jnp.concatenate([query[..., : self.nope], rotate(query[..., self.nope :], cos=cos, sin=sin)], axis=-1)

        joint = matmul(x, self.latent_down, place="attention.latent_down")
        latent, key_rope = jnp.split(joint, [joint.shape[-1] - self.rope], axis=-1)
        key_value = matmul(self.latent_norm(latent), self.latent_up, place="attention.latent_up")
        key_value = key_value.reshape(batch, seq, -1, self.nope + self.value)
        key_rope = rotate(key_rope, cos=cos, sin=sin)[:, :, None]
        key_rope = jnp.broadcast_to(key_rope, (*key_value.shape[:3], self.rope))
        keys = jnp.concatenate([key_value[..., : self.nope], key_rope], axis=-1)

        mixed = execution.attention(query, keys, key_value[..., self.nope :], scale=self.scale, segments=segments)
        mixed = dropout(mixed, rate=execution.attention_dropout, key=key)
        return matmul(mixed.reshape(batch, seq, -1), self.out, place="attention.out")


def attend(
    layer: MLA, x: Float[Array, "batch seq width"], config: ModelConfig, *, execution: Execution = LOCAL
) -> Float[Array, "batch seq width"]:
    """One layer of `config` on its own, at positions 0, 1, ...: for notebooks, tests and benchmarks of the part."""
    angles = rotary_angles(
        jnp.arange(x.shape[1])[None], width=config.qk_rope_head_dim, theta=config.rope_theta, yarn=config.rope_scaling
    )
    return layer(x, cos=angles[0], sin=angles[1], segments=None, execution=execution)
