"""What a traced gradient keeps between its forward and its backward pass, in exact bytes.

`jax.vjp` returns the backward pass as a tree whose leaves are the arrays that it will need: the residuals. Traced, they
are named before anything runs. Many of them are arguments (the weights, above all), which are in memory anyway and are
told apart; the others come in addition. What the compiler then keeps may differ: it can compute a residual again, or
keep one in another place for longer. That is in `memory_analysis()` of the compiled program, and no prediction.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import Var


@dataclass(frozen=True)
class Residual:
    """One kind of array that is kept.

    count: how many arrays of this kind.
    dtype, shape: of each.
    argument: whether these are arguments of the function, differentiated or not, and so no additional memory.
    """

    count: int
    dtype: str
    shape: tuple[int, ...]
    argument: bool
    itemsize: int

    @property
    def bytes(self) -> int:
        """Of all arrays of this kind together."""
        return self.count * math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Residuals:
    """Everything that is kept, the largest kind first."""

    kinds: tuple[Residual, ...]

    @property
    def new_bytes(self) -> int:
        """Bytes of the residuals that are no arguments."""
        return sum(kind.bytes for kind in self.kinds if not kind.argument)

    @property
    def argument_bytes(self) -> int:
        """Bytes of the residuals that are arguments, each counted once."""
        return sum(kind.bytes for kind in self.kinds if kind.argument)

    def table(self, *, argument: bool = False) -> list[tuple[str, int, int]]:
        """Type with shape, arrays and bytes of each kind, e.g. ("float32[8, 256]", 3, 24576)."""
        return [
            (f"{kind.dtype}{list(kind.shape)}", kind.count, kind.bytes)
            for kind in self.kinds
            if kind.argument == argument
        ]


def residuals(fn: Callable[..., Any], *args: Any) -> Residuals:
    """What `jax.vjp(fn, args[0], ...)` keeps for the backward pass; nothing is computed.

    The first argument is differentiated, the others are given. An array that is kept twice is counted once, and so is
    a stack of arrays that a scan keeps as one. A constant of the program (a number written in it) is not counted.

    Args:
        fn: a function of PyTrees that returns the objective; leaves of `args` that are not arrays are static.
        args: arrays or `jax.ShapeDtypeStruct`s; of the first every array must be of a floating type.
    """
    arrays, static = eqx.partition(args, _is_array)
    leaves, tree = jax.tree.flatten(arrays)

    def kept(*leaves: Any) -> list[Any]:
        first, *rest = eqx.combine(jax.tree.unflatten(tree, leaves), static)
        differentiated, other = eqx.partition(first, _is_array)
        _, backward = jax.vjp(lambda diff: fn(eqx.combine(diff, other), *rest), differentiated)
        return jax.tree.leaves(backward)

    jaxpr = jax.make_jaxpr(kept)(*leaves).jaxpr
    arguments, seen = set(jaxpr.invars), dict.fromkeys(var for var in jaxpr.outvars if isinstance(var, Var))
    counts: Counter[tuple[str, tuple[int, ...], bool, int]] = Counter()
    for var in seen:
        aval: Any = var.aval
        counts[(str(aval.dtype), tuple(aval.shape), var in arguments, aval.dtype.itemsize)] += 1
    kinds = [Residual(count, *kind) for kind, count in counts.items()]
    return Residuals(tuple(sorted(kinds, key=lambda kind: -kind.bytes)))


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
