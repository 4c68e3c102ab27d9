"""The `Execution` that a parallel plan asks for."""

import dataclasses
from typing import Literal

import jax

import jax.numpy as jnp

from dsv3lab.config import ParallelConfig, PrecisionConfig
from dsv3lab.model import LOCAL, Execution, fp8_grouped_matmul, fp8_matmul

FP32 = PrecisionConfig(products="float32", activations="float32")


def make_execution(
    plan: ParallelConfig,
    *,
    precision: PrecisionConfig = FP32,
    remat: Literal["none", "full"] = "none",
    scan: bool = True,
) -> Execution:
    """How the model's mathematics is carried out under `plan`.

    Data parallelism alone leaves the forward pass of each device as it is on one device: `data_parallel` communicates
    around it. What `remat` and `scan` ask for is the same on any number of devices.

    Args:
        plan: the device mesh.
        precision: number formats of the linear layers and of what is between them.
        remat: "full" recomputes each unit of blocks in the backward pass and saves only its input.
        scan: run equal blocks in `lax.scan` (compiled once) instead of unrolled.
    """
    del plan  # the "data" axis is the only one, and no function of the forward pass crosses it
    wrap = {"none": LOCAL.remat, "full": jax.checkpoint}[remat]
    products = {"matmul": fp8_matmul, "grouped_matmul": fp8_grouped_matmul} if precision.products == "fp8" else {}
    return dataclasses.replace(LOCAL, remat=wrap, scan=scan, activations=jnp.dtype(precision.activations), **products)
