"""The default training step with pages of 4 KiB and of 2 MiB (`dsv3lab/workbook/process.py`), printed as JSON.

    python benchmarks/large_pages.py > benchmarks/results/large_pages.json

XLA allocates the temporaries of a step anew each time. Both settings run in processes of their own, in turns; times and
page faults are of the process (`getrusage`), per step, after warm-up. The losses must be equal to the last bit.
"""

import argparse
import datetime
import functools as ft
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

SETTINGS = {"4 KiB": "glibc.malloc.hugetlb=0", "2 MiB": "glibc.malloc.hugetlb=1"}


def steps(count: int) -> dict[str, Any]:
    """What a step costs in this process: mean wall, user and system seconds, page faults, and the last loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dsv3lab.train.step import TrainState, train_step
    from dsv3lab.workbook.compose import compose

    config = compose([], phase=2)[0]
    length = config.data.sequence_length
    state = TrainState.init(config.model, config.train, sequence_length=length)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (config.train.batch_size, length + 1))
    windows = jnp.asarray(tokens, jnp.int32)
    step = jax.jit(ft.partial(train_step, config=config.train, sequence_length=length), donate_argnums=0)
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, windows))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    metrics: Any = {}
    for _ in range(count):
        state, metrics = jax.block_until_ready(step(state, windows))
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": wall / count,
        "user_s": (after.ru_utime - before.ru_utime) / count,
        "system_s": (after.ru_stime - before.ru_stime) / count,
        "page_faults": (after.ru_minflt - before.ru_minflt) / count,
        "loss": float(metrics["loss"]),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def child(setting: str, count: int) -> dict[str, Any]:
    """`steps` in a process that starts with a setting of glibc."""
    command = [sys.executable, __file__, "--child", "--steps", str(count)]
    done = subprocess.run(command, env=os.environ | {"GLIBC_TUNABLES": setting}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each process (default 20)")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each setting (default 3)")
    parser.add_argument("--child", action="store_true", help="one process, as it is; prints its own figures")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(steps(given.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(given.repeats):
        for name, setting in SETTINGS.items():
            found[name].append(child(setting, given.steps))
    keys = ("wall_s", "user_s", "system_s", "page_faults")
    medians = {name: {key: statistics.median(one[key] for one in runs) for key in keys} for name, runs in found.items()}
    small, large = medians["4 KiB"], medians["2 MiB"]
    everything = [one for runs in found.values() for one in runs]
    report = {
        "benchmark": "large_pages",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {"kind": everything[0]["device"], "machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "jax": everything[0]["jax"], "libc": platform.libc_ver()[1]},
        "steps": given.steps,
        "per_step": medians,
        "times_faster": small["wall_s"] / large["wall_s"],
        "cpu_saved": 1 - (large["user_s"] + large["system_s"]) / (small["user_s"] + small["system_s"]),
        "same_loss": len({one["loss"] for one in everything}) == 1,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
