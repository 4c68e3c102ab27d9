"""The `Execution` that a parallel plan asks for."""

import dataclasses

import jax.numpy as jnp

from dsv3lab.config import DropoutConfig, ParallelConfig, PrecisionConfig
from dsv3lab.model import LOCAL, Execution, fp8_grouped_matmul, fp8_matmul
from dsv3lab.parallel.remat import Policy, with_remat

NO_DROPOUT = DropoutConfig(residual=0.0, attention=0.0)
FP32 = PrecisionConfig(products="float32", activations="float32")


def make_execution(
    plan: ParallelConfig,
    *,
    precision: PrecisionConfig = FP32,
    dropout: DropoutConfig = NO_DROPOUT,
    remat: Policy = "none",
    scan: bool = True,
) -> Execution:
    """How the model's mathematics is carried out under `plan`.

    Data parallelism alone leaves the forward pass of each device as it is on one device: `data_parallel` communicates
    around it. What `remat` and `scan` ask for is the same on any number of devices.

    Args:
        plan: the device mesh.
        precision: number formats of the linear layers and of what is between them.
        dropout: rates of what is dropped in training.
        remat: what of each unit of blocks is kept for the backward pass, see `remat.KEPT`.
        scan: run equal blocks in `lax.scan` (compiled once) instead of unrolled.
    """
    del plan  # the "data" axis is the only one, and no function of the forward pass crosses it
    products = {"matmul": fp8_matmul, "grouped_matmul": fp8_grouped_matmul} if precision.products == "fp8" else {}
    rates = {"residual_dropout": dropout.residual, "attention_dropout": dropout.attention}
    dtype = jnp.dtype(precision.activations)
    return with_remat(dataclasses.replace(LOCAL, scan=scan, activations=dtype, **products, **rates), remat)
