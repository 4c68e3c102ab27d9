"""Rotary positions on interleaved pairs (2i, 2i+1), with YaRN (DeepSeek-V3 report 4.3; arXiv:2309.00071)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dsv3lab.config import ModelConfig, YarnConfig


def yarn_mscale(factor: float, mscale: float) -> float:
    """`0.1 mscale ln(factor) + 1`, or 1 where the context is not extended (the released `model.py`)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def correction_range(width: int, *, theta: float, yarn: YarnConfig) -> tuple[int, int]:
    """The pairs between which YaRN fades from kept to interpolated frequencies: 10 and 23 for V3's width of 64."""

    def pair(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(theta))

    low, high = math.floor(pair(yarn.beta_fast)), math.ceil(pair(yarn.beta_slow))
    return max(low, 0), min(high, width - 1)


def inverse_frequencies(width: int, *, theta: float, yarn: YarnConfig | None) -> np.ndarray:
    """Angle per position of each pair, radians, float64 [width / 2]."""
    frequencies = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if yarn is None or yarn.factor <= 1.0:
        return frequencies
    low, high = correction_range(width, theta=theta, yarn=yarn)
    # As in the released code, a range of no length fades over a thousandth of a pair.
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return frequencies / yarn.factor * ramp + frequencies * (1.0 - ramp)


def softmax_scale(config: ModelConfig) -> float:
    """`qk_head_dim^-1/2`, times `mscale(mscale_all_dim)^2` under YaRN (0.1352338 for V3)."""
    scale = config.qk_head_dim**-0.5
    yarn = config.rope_scaling
    return scale if yarn is None else scale * yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2


def rotary_angles(
    positions: Int[Array, "*batch seq"], *, width: int, theta: float, yarn: YarnConfig | None
) -> tuple[Float[Array, "*batch seq half"], Float[Array, "*batch seq half"]]:
    """cos and sin of each position and pair, float32, with YaRN's factor mscale / mscale_all_dim (1 for V3)."""
    frequencies = inverse_frequencies(width, theta=theta, yarn=yarn).astype(np.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    scale = 1.0
    if yarn is not None:
        scale = yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "batch seq *heads width"],
    *,
    cos: Float[Array, "#batch seq half"],
    sin: Float[Array, "#batch seq half"],
) -> Float[Array, "batch seq *heads width"]:
    """Turn each pair (x[2i], x[2i+1]) by its angle; `x` may carry a head axis before the last one."""
    if x.ndim == 4:
        cos, sin = cos[:, :, None], sin[:, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
