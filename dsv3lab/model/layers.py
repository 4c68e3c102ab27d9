"""RMSNorm, SwiGLU and the one initialisation: the parts without a choice."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dsv3lab.config import ModelConfig
from dsv3lab.model.execution import Execution


def normal(key: PRNGKeyArray, shape: tuple[int, ...], *, std: float) -> Float[Array, "..."]:
    """Normal weights of standard deviation `std`, the same for every matrix.

    The report gives one number, 0.006 (4.2 Hyper-parameters), and no scaling of residual outputs with depth: none here.
    """
    return std * jax.random.normal(key, shape, jnp.float32)


def rms_norm(x: Float[Array, "... width"], weight: Float[Array, " width"], *, eps: float) -> Float[Array, "... width"]:
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in float32 and returned in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale * weight.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(eqx.Module):
    """Root-mean-square norm with a learned scale and no bias."""

    weight: Float[Array, "*stack width"]
    eps: float = eqx.field(static=True)

    @staticmethod
    def init(width: int, *, eps: float) -> "RMSNorm":
        """A norm over `width` features, scale one."""
        return RMSNorm(weight=jnp.ones(width, jnp.float32), eps=eps)

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return rms_norm(x, self.weight, eps=self.eps)


def dropout(x: Float[Array, "..."], *, rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """`x` with elements dropped at `rate` and the others scaled up to the same mean; as it is at rate 0 or without a key."""
    if not rate or key is None:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def swiglu(gate_up: Float[Array, "... two_inner"]) -> Float[Array, "... inner"]:
    """`silu(gate) * up` of one array that holds both halves, gate first."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up


class SwiGLU(eqx.Module):
    """`W2 (silu(W1 x) * W3 x)`; W1 and W3 are one array, so that they are one matrix product."""

    gate_up: Float[Array, "*stack width 2 inner"]
    down: Float[Array, "*stack inner width"]

    @staticmethod
    def init(config: ModelConfig, *, inner: int, key: PRNGKeyArray) -> "SwiGLU":
        """A SwiGLU of width `inner`."""
        width, std = config.hidden_size, config.initializer_range
        key_in, key_out = jax.random.split(key)
        return SwiGLU(gate_up=normal(key_in, (width, 2, inner), std=std), down=normal(key_out, (inner, width), std=std))

    def __call__(self, x: Float[Array, "... width"], *, execution: Execution) -> Float[Array, "... width"]:
        hidden = swiglu(execution.matmul(x, self.gate_up.reshape(self.gate_up.shape[0], -1), place="ffn.gate_up"))
        return execution.matmul(hidden, self.down, place="ffn.down")
