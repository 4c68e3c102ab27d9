"""How far two states of training are apart: in bits, and relative to the largest element."""

from typing import Any

import jax
import numpy as np

from dsv3lab.train.step import TrainState, split


def differing_elements(left: Any, right: Any) -> int:
    """Elements of two trees of the same structure whose bits differ."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum(int(np.count_nonzero(_bits(a) != _bits(b))) for a, b in pairs)


def largest_relative_difference(left: Any, right: Any) -> float:
    """The largest difference of any array of `right` from its counterpart, relative to the counterpart's largest element.

    An array of zeros has no scale: there any difference counts as infinite.
    """
    worst = 0.0
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        difference, largest = np.abs(a - b).max(initial=0.0), np.abs(a).max(initial=0.0)
        if difference > 0:
            worst = max(worst, float(difference / largest) if largest > 0 else float("inf"))
    return worst


def gradient_bytes(state: TrainState) -> int:
    """Bytes of one gradient: those of the trainable leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(split(state.model)[0]))


def _bits(leaf: Any) -> np.ndarray:
    array = np.ascontiguousarray(leaf)
    return array.reshape(-1).view(f"u{array.dtype.itemsize}")
