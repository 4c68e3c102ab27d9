"""Every part of the model against the roofs of this machine and against its plain form, printed as JSON.

    python benchmarks/components.py > benchmarks/results/components.json
    python benchmarks/components.py --model tiny --sequence 2048 --dtype bfloat16

Rates are of the products that the mathematics asks for (2 m k n, backward twice the forward, causal) and of the bytes
that must be moved at least; peaks, parts and references are timed in one process.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
from typing import Any

import jax
import numpy as np

from dsv3lab.config import TrainConfig, build, config, read_yaml
from dsv3lab.config.paths import CONF
from dsv3lab.train import Shape, parts, time_parts


def measure(*, model: str, shape: Shape, repeats: int) -> dict[str, Any]:
    """Peaks, every part in its directions, and every part against its reference."""
    train = build(TrainConfig, read_yaml(CONF / "train" / "nano.yaml"), path="train")
    found = parts(config(model), train, shape)
    measured, compared, peaks = time_parts(found, repeats=repeats, dtype=shape.dtype, progress=lambda _: None)
    return {
        "sizes": {"model": model, "batch": shape.batch, "sequence": shape.sequence, "stream": shape.stream},
        "dtype": jax.numpy.dtype(shape.dtype).name,
        "peaks": {"flop_per_s": peaks.flops, "copy_bytes_per_s": peaks.bytes, "ridge_flop_per_byte": peaks.ridge},
        "parts": [
            {
                **dataclasses.asdict(one),
                "flop_per_s": one.flops_per_s,
                "bytes_per_s": one.bytes_per_s,
                "bound": one.bound(peaks),
                "of_roof": one.of_roof(peaks),
            }
            for one in measured
        ],
        "references": [dataclasses.asdict(one) for one in compared],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a name of conf/model (default nano)")
    parser.add_argument("--batch", type=int, default=8, help="sequences (default 8)")
    parser.add_argument("--sequence", type=int, default=256, help="tokens of a sequence (default 256)")
    parser.add_argument("--stream", type=int, default=1 << 17, help="tokens of the parts without products")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the activations")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each program (default 7)")
    given = parser.parse_args()
    shape = Shape(batch=given.batch, sequence=given.sequence, stream=given.stream, dtype=given.dtype)
    report = {
        "benchmark": "components",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {"kind": jax.devices()[0].device_kind, "machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
        **measure(model=given.model, shape=shape, repeats=given.repeats),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
