"""Every equation of a traced program, with how often it runs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


@dataclass(frozen=True)
class Site:
    """One equation of a program.

    times: executions on one device; `None` inside `while` and `cond`, where the trace does not say.
    devices: devices that execute it: the size of the enclosing `shard_map`'s manual axes, else 1.
    """

    eqn: JaxprEqn
    times: int | None
    devices: int

    def count(self) -> int:
        """Executions on one device.

        Raises:
            ValueError: if the equation stands inside a `while` or a `cond`.
        """
        if self.times is None:
            raise ValueError(
                f"'{self.eqn.primitive.name}' stands inside a while loop or a cond, so the trace does not say how "
                "often it runs; write the loop as a scan of known length, or count its body by itself"
            )
        return self.times


def sites(fn: Callable[..., Any], *args: Any) -> Iterator[Site]:
    """Trace `fn(*args)` and yield the equations of the program and of all programs inside it that hold no others.

    Args:
        fn: any function of PyTrees; leaves that are not arrays are static.
        args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    closed, _, _ = eqx.filter_make_jaxpr(fn)(*args)
    yield from _walk(closed.jaxpr, 1, 1)


def _walk(jaxpr: Jaxpr, times: int | None, devices: int) -> Iterator[Site]:
    for eqn in jaxpr.eqns:
        inner = list(_inner(eqn))
        if not inner:
            yield Site(eqn, times, devices)
            continue
        name = eqn.primitive.name
        inner_times = None if name in ("while", "cond") or times is None else times * eqn.params.get("length", 1)
        inner_devices = devices * _mesh_size(eqn) if name == "shard_map" else devices
        for sub in inner:
            yield from _walk(sub, inner_times, inner_devices)


def _inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs in an equation's parameters: jit, scan, remat, custom_vjp, shard_map and the branches of cond."""
    if eqn.primitive.name == "pallas_call":  # a kernel's body runs on blocks, as often as its grid says: opaque here
        return
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _mesh_size(eqn: JaxprEqn) -> int:
    return math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])
