"""The fast CPU path of the routed experts against `jax.lax.ragged_dot`: time and temporaries, printed as JSON.

    python benchmarks/grouped_matmul.py > benchmarks/results/grouped_matmul.json

Forward and backward of the whole expert SwiGLU on rows sorted by expert, both in one process and interleaved. The sizes
are those of the project's requirement: at least 8 times faster, with at most a fifth of the temporaries.
"""

import argparse
import datetime
import functools as ft
import json
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsv3lab.measure import median_time
from dsv3lab.model import Execution, Experts, grouped_matmul
from dsv3lab.model.grouped import Implementation

FASTER_AT_LEAST, TEMPORARIES_AT_MOST = 8.0, 0.2


def routed_rows(*, tokens: int, experts: int, top: int, seed: int) -> jax.Array:
    """Rows of each expert when every token chooses `top` experts by random scores with a mild preference."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(tokens, experts)) + 0.3 * rng.normal(size=experts)
    chosen = np.argsort(-scores, axis=1)[:, :top]
    return jnp.asarray(np.bincount(chosen.ravel(), minlength=experts), jnp.int32)


def compiled(implementation: Implementation, *arguments: Any) -> Any:
    """The compiled gradient of a quadratic loss of the experts' output, for rows and weights."""
    execution = Execution(grouped_matmul=ft.partial(grouped_matmul, implementation=implementation))

    def loss(differentiated: tuple[Experts, jax.Array], gates: jax.Array, sizes: jax.Array) -> jax.Array:
        experts, rows = differentiated
        return jnp.mean(jnp.square(experts(rows, gates, sizes, execution=execution)))

    return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()


def measure(*, tokens: int, width: int, experts: int, top: int, inner: int, repeats: int) -> dict[str, Any]:
    """Times and temporaries of both implementations, and their ratios."""
    keys = jax.random.split(jax.random.key(0), 4)
    weights = Experts(
        gate_up=0.05 * jax.random.normal(keys[0], (experts, width, 2, inner)),
        down=0.05 * jax.random.normal(keys[1], (experts, inner, width)),
    )
    rows = jax.random.normal(keys[2], (tokens * top, width))
    gates = jax.random.uniform(keys[3], (tokens * top,))
    sizes = routed_rows(tokens=tokens, experts=experts, top=top, seed=0)
    arguments = ((weights, rows), gates, sizes)
    programs = {name: compiled(name, *arguments) for name in ("ragged", "blocked")}
    outputs = {name: program(*arguments) for name, program in programs.items()}
    errors = [
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(jax.tree.leaves(outputs["blocked"]), jax.tree.leaves(outputs["ragged"]), strict=True)
    ]
    timings = median_time(
        {n: ft.partial(p, *arguments) for n, p in programs.items()}, repeats=repeats, warmup=0, settle=1
    )
    seconds = {name: timing.median_s for name, timing in timings.items()}
    temporaries = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    flops = 3 * 2 * tokens * top * width * inner * 3
    return {
        "sizes": {"tokens": tokens, "width": width, "experts": experts, "top": top, "inner": inner, "dtype": "float32"},
        "rows_per_expert": np.asarray(sizes).tolist(),
        "seconds": seconds,
        "gflop_per_s": {name: flops / s / 1e9 for name, s in seconds.items()},
        "temporaries_bytes": temporaries,
        "largest_relative_difference": max(errors),
        "times_faster": seconds["ragged"] / seconds["blocked"],
        "temporaries_ratio": temporaries["blocked"] / temporaries["ragged"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each implementation (default 3)")
    repeats = parser.parse_args().repeats
    result = measure(tokens=4096, width=256, experts=16, top=4, inner=512, repeats=repeats)
    report = {
        "benchmark": "grouped_matmul",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {"kind": jax.devices()[0].device_kind, "machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        **result,
        "required": {"times_faster": FASTER_AT_LEAST, "temporaries_ratio": TEMPORARIES_AT_MOST},
        "met": result["times_faster"] >= FASTER_AT_LEAST and result["temporaries_ratio"] <= TEMPORARIES_AT_MOST,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
