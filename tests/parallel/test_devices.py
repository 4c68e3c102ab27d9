"""Simulated devices and the mesh."""

import os
import subprocess
import sys

import jax
import pytest

from dsv3lab import parallel
from dsv3lab.config import ROOT, ParallelConfig

BURST = """
from dsv3lab.parallel import make_mesh, simulate_devices
simulate_devices(8)
simulate_devices(4)
import os, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from dsv3lab.config import ParallelConfig
assert len(jax.devices()) == 8 and "NPROC" not in os.environ
mesh = make_mesh(ParallelConfig(data=8, simulated=True))
step = jax.jit(jax.shard_map(lambda x: x + jax.lax.psum(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P("data")))
jax.block_until_ready([step(jnp.ones(8) * i) for i in range(50)])
"""


@pytest.mark.limit(60)  # a process of its own, which imports JAX
def test_a_fresh_process_survives_a_burst_of_unwaited_collectives():
    environment = {k: v for k, v in os.environ.items() if k not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(
        [sys.executable, "-c", BURST], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_too_late_is_refused_and_enough_is_not():
    parallel.simulate_devices(len(jax.devices()))
    with pytest.raises(RuntimeError, match="already started with 8 CPU"):
        parallel.simulate_devices(9)


def test_the_mesh_has_one_axis_and_asks_for_enough_devices():
    mesh = parallel.make_mesh(ParallelConfig(data=4, simulated=True))
    assert dict(mesh.shape) == {"data": 4}
    with pytest.raises(ValueError, match=r"needs 64 devices and there are 8; call simulate_devices\(64\)"):
        parallel.make_mesh(ParallelConfig(data=64, simulated=True))
    with pytest.raises(ValueError, match="smaller parallel.data"):
        parallel.make_mesh(ParallelConfig(data=64, simulated=False))
