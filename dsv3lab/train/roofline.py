"""Time, work and error of each part of the model, against the peaks of the machine in the same run.

A part can be as fast as its products allow (compute bound) or as the bytes that it must move allow (memory bound);
which of the two binds, its arithmetic intensity says (Williams et al., Roofline, CACM 52(4), 2009). What sorts is bound by
neither: comparisons are no products, and few bytes are moved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dsv3lab import measure
from dsv3lab.train.components import Part, Run
from dsv3lab.train.difference import largest_relative_difference

Direction = Literal["forward", "forward and backward", "update"]
Bound = Literal["compute", "memory", "sorting"]


@dataclass(frozen=True)
class Peaks:
    """The roofs of this machine: products in FLOP/s, and a copy in bytes/s (read and written both counted)."""

    flops: float
    bytes: float

    @property
    def ridge(self) -> float:
        """FLOPs for each byte from which on products bind and memory does not."""
        return self.flops / self.bytes


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One part in one direction.

    part: its name.
    direction: the forward pass alone, both together, or the update of the optimizer, which has no backward pass.
    flops: of the products that the mathematics asks for, whatever was computed.
    bytes: arguments, results and, backward, cotangents and gradients, each moved once.
    seconds: median.
    sorts: whether it is comparisons that take the time.
    """

    part: str
    direction: Direction
    flops: int
    bytes: int
    seconds: float
    sorts: bool = False

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes

    @property
    def flops_per_s(self) -> float:
        """Achieved rate of products."""
        return self.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Achieved rate of bytes that must be moved; a part that moves more, or reads from a cache, is not seen in it."""
        return self.bytes / self.seconds

    def bound(self, peaks: Peaks) -> Bound:
        """What binds: products, memory, or neither of them."""
        if self.sorts:
            return "sorting"
        return "compute" if self.intensity >= peaks.ridge else "memory"

    def of_roof(self, peaks: Peaks) -> float:
        """Achieved share of the roof over its arithmetic intensity."""
        return max(self.flops_per_s / peaks.flops, self.bytes_per_s / peaks.bytes)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One part against its reference, forward and backward together (of the optimizer: the update).

    part, against: names of the part and of its reference.
    speedup: how many times as long the reference takes: medians of calls timed interleaved.
    error: largest difference of any result from the reference's, relative to the largest element of that result.
    """

    part: str
    against: str
    speedup: float
    error: float


def forward_and_backward(run: Run) -> Callable[..., Any]:
    """`(variables, constants, cotangents) -> (outputs, gradients)`: nothing of the forward pass can be left out."""

    def both(variables: Any, constants: Any, cotangents: Any) -> Any:
        def floats(variables: Any) -> Any:
            return eqx.partition(run(variables, constants), eqx.is_inexact_array)

        outputs, pull, others = jax.vjp(floats, variables, has_aux=True)
        return (eqx.combine(outputs, others), *pull(cotangents))

    return both


def cotangents(part: Part, *, seed: int = 0) -> Any:
    """Random ones for each floating-point output of `part`, `None` for the others."""
    rng = np.random.default_rng(seed)
    outputs = _floats(jax.eval_shape(part.run, part.variables, part.constants))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype), outputs)


def least_bytes(part: Part, *, backward: bool) -> int:
    """What must be moved at least: each argument read once, and each result written once.

    The backward pass reads the cotangents, too, and writes a gradient for each variable.
    """
    outputs = jax.eval_shape(part.run, part.variables, part.constants)
    moved = _nbytes(part.variables) - part.unread + _nbytes(part.constants) + _nbytes(outputs)
    if backward:
        moved += _nbytes(_floats(outputs)) + _nbytes(part.variables)
    return moved


def _floats(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, shapes)


def _nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def time_part(part: Part, *, repeats: int) -> tuple[list[Measured], Compared]:
    """`part` in each direction that it has, and against its reference in the last one.

    All programs are timed interleaved; each timed call follows one that is not timed.
    """
    arguments: Any = (part.variables, part.constants)
    programs: dict[Direction, Callable[[], Any]] = {}
    if part.differentiated:
        programs["forward"] = _call(part.run, arguments)
        arguments = (*arguments, cotangents(part))
        programs["forward and backward"] = _call(forward_and_backward(part.run), arguments)
        reference = _call(forward_and_backward(part.reference), arguments)
    else:
        programs["update"] = _call(part.run, arguments)
        reference = _call(part.reference, arguments)
    last = list(programs)[-1]
    error = largest_relative_difference(*(jax.device_get(call()) for call in (reference, programs[last])))
    calls = {**programs, "reference": reference}
    timings = measure.median_time(calls, repeats=repeats, warmup=1, settle=1)
    measured = [
        Measured(
            part=part.name,
            direction=direction,
            flops=part.flops * (3 if direction == "forward and backward" else 1),
            bytes=least_bytes(part, backward=direction == "forward and backward"),
            seconds=timings[direction].median_s,
            sorts=part.sorts,
        )
        for direction in programs
    ]
    speedup = timings["reference"].median_s / timings[last].median_s
    return measured, Compared(part=part.name, against=part.against, speedup=speedup, error=error)


def _call(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], Any]:
    compiled = jax.jit(run).lower(*arguments).compile()
    return lambda: compiled(*arguments)


def peaks(*, dtype: DTypeLike = jnp.float32) -> Peaks:
    """Both roofs, now."""
    return Peaks(flops=measure.matmul_peak(dtype=dtype), bytes=measure.copy_peak())


def time_parts(
    parts: Sequence[Part], *, repeats: int, dtype: DTypeLike = jnp.float32, progress: Callable[[str], None] = print
) -> tuple[list[Measured], list[Compared], Peaks]:
    """Every part in its directions and against its reference, and the larger of the peaks before and after.

    Args:
        parts: what to measure.
        repeats: timed calls behind each median.
        dtype: of the products behind the peak.
        progress: receives one line for each part.
    """
    before = peaks(dtype=dtype)
    measured: list[Measured] = []
    compared: list[Compared] = []
    for number, part in enumerate(parts, 1):
        progress(f"{part.name} ({number} of {len(parts)})")
        directions, against = time_part(part, repeats=repeats)
        measured += directions
        compared.append(against)
    after = peaks(dtype=dtype)
    return measured, compared, Peaks(flops=max(before.flops, after.flops), bytes=max(before.bytes, after.bytes))


def farthest(measured: Sequence[Measured], peaks: Peaks, *, bound: Bound) -> Measured:
    """The part farthest from its roof of those that are bound so.

    At toy sizes products bind nothing: then of those that have products, although memory binds them.
    """
    found = [one for one in measured if one.bound(peaks) == bound]
    return min(found or [one for one in measured if one.flops and not one.sorts], key=lambda one: one.of_roof(peaks))
