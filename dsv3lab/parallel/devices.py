"""Devices, simulated or real, and the mesh over them."""

import os

import jax
from jax.sharding import AxisType, Mesh

from dsv3lab.config import ParallelConfig


def simulate_devices(count: int) -> None:
    """Let this process compute on `count` simulated CPU devices; call it before anything computes.

    XLA gives CPU collectives as many threads as it counts processors. Collectives that wait for each other on fewer
    threads than devices starve and abort the process, so it is told of twice as many processors as devices (`NPROC`,
    which it reads when the backend starts). A caller that also waits for each step's result is safe on both counts.

    Calling it again is harmless as long as no more devices are asked for.

    Raises:
        RuntimeError: if JAX already started with fewer devices.
    """
    before = os.environ.get("NPROC")
    try:
        os.environ["NPROC"] = str(max(64, 2 * count))
        jax.config.update("jax_num_cpu_devices", count)
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        pass  # the backend is up already; what it has decides below
    finally:
        found = len(jax.devices("cpu"))  # starts the backend, which reads NPROC now and never again
        os.environ.pop("NPROC") if before is None else os.environ.update(NPROC=before)
    if found < count:
        raise RuntimeError(
            f"simulate_devices: JAX already started with {found} CPU device(s), so {count} cannot be simulated; call it "
            "before the first array is made (in a notebook: restart the kernel)"
        )


def make_mesh(plan: ParallelConfig) -> Mesh:
    """The mesh of `plan`: one axis, "data".

    Raises:
        ValueError: if there are fewer devices than the plan names.
    """
    devices = jax.devices("cpu") if plan.simulated else jax.devices()
    if len(devices) < plan.data:
        advice = f"call simulate_devices({plan.data}) first" if plan.simulated else "choose a smaller parallel.data"
        raise ValueError(f"parallel.data: the plan needs {plan.data} devices and there are {len(devices)}; {advice}")
    return jax.make_mesh((plan.data,), ("data",), devices=devices[: plan.data], axis_types=(AxisType.Auto,))
