"""The parts of the roofline: their work as integers, and that each equals its plain form."""

import jax
import numpy as np
import pytest

from dsv3lab import plan, program
from dsv3lab.model import COUNTABLE
from dsv3lab.program.walk import sites
from dsv3lab.train import components, roofline
from dsv3lab.train.roofline import Measured, Peaks
from tests import builders
from tests.tolerances import GRADIENT_RTOL

SHAPE = components.Shape(batch=4, sequence=12, stream=480)
NAMES = ["MLA", "dense SwiGLU", "expert layer", "router", "RMSNorm", "RoPE", "embedding", "head and loss", "MTP module"]
CONFIG, TRAIN = builders.model_config(), builders.train_config()


@pytest.fixture(scope="module")
def parts():
    return {part.name: part for part in components.parts(CONFIG, TRAIN, SHAPE)}


def test_every_part_of_the_model_is_there(parts):
    assert list(parts) == [*NAMES, "optimizer"]
    few = builders.model_config(first_k_dense_replace=0, num_nextn_predict_layers=0)
    names = [part.name for part in components.parts(few, TRAIN, SHAPE)]
    assert names == [name for name in [*NAMES, "optimizer"] if name not in ("dense SwiGLU", "MTP module")]


def test_the_traced_products_are_those_that_are_claimed(parts):
    """References make the whole square of scores; what is claimed leaves out what the causal mask hides."""
    square = plan.flops_by_part(CONFIG, sequence_length=SHAPE.sequence)
    causal = plan.flops_by_part(CONFIG, sequence_length=SHAPE.sequence, causal=True)
    hidden = SHAPE.tokens * (square["attention"] - causal["attention"])
    assert hidden == SHAPE.tokens * CONFIG.num_attention_heads * (SHAPE.sequence - 1) * (
        CONFIG.qk_head_dim + CONFIG.v_head_dim
    )
    for name, part in parts.items():
        run = part.run if name in ("RMSNorm", "RoPE", "embedding", "optimizer") else part.reference
        extra = hidden if name in ("MLA", "MTP module") else 0
        assert program.flops(run, part.variables, part.constants) == part.flops + extra, name
        if part.flops:
            both = roofline.forward_and_backward(run)
            counted = program.flops(both, part.variables, part.constants, roofline.cotangents(part))
            assert counted == 3 * (part.flops + extra), name


def test_the_parts_add_up_to_the_model():
    part = plan.flops_by_part(CONFIG, sequence_length=SHAPE.sequence)
    layers = 3 * part["attention"] + part["dense_ffn"] + 2 * (part["experts"] + part["router"])
    whole = layers + 2 * part["head"] + part["mtp"]
    assert whole == plan.flops_per_token(CONFIG, sequence_length=SHAPE.sequence, backward=False)


def test_the_bytes_are_arguments_and_results_each_moved_once(parts):
    tokens, width, d = 480, 16, 4
    stream = tokens * width * d
    assert roofline.least_bytes(parts["RMSNorm"], backward=False) == 2 * stream + width * d
    assert roofline.least_bytes(parts["RMSNorm"], backward=True) == 4 * stream + 2 * width * d
    seen = len(np.unique(np.asarray(parts["embedding"].constants)))
    looked_up = SHAPE.stream // 8
    read = seen * width * d + looked_up * (d + width * d)
    assert seen < CONFIG.vocab_size
    assert roofline.least_bytes(parts["embedding"], backward=False) == read
    whole = read + looked_up * width * d + CONFIG.vocab_size * width * d
    # The gradient is that of the whole table; the rows that nobody asked for need not be read.
    assert roofline.least_bytes(parts["embedding"], backward=True) == whole
    optimizer = parts["optimizer"]
    trained = plan.parameters(CONFIG).total + plan.parameters(CONFIG).mtp - 3 * CONFIG.n_routed_experts
    assert roofline.least_bytes(optimizer, backward=False) == 7 * trained * d + 2 * 4  # and two counts of steps


@pytest.mark.limit(60)  # thirty programs are compiled
def test_every_part_equals_its_plain_form_and_is_timed(parts):
    said = []
    measured, compared, peaks = roofline.time_parts(list(parts.values()), repeats=1, progress=said.append)
    assert len(said) == len(compared) == len(parts) and len(measured) == 2 * len(parts) - 1
    assert {one.part: one.error for one in compared if not one.error <= GRADIENT_RTOL} == {}
    assert all(one.seconds > 0 and one.bytes > 0 for one in measured) and all(one.speedup > 0 for one in compared)
    by_name = {(one.part, one.direction): one for one in measured}
    assert by_name["MLA", "forward and backward"].flops == 3 * by_name["MLA", "forward"].flops == 3 * parts["MLA"].flops
    assert ("optimizer", "update") in by_name and peaks.flops > 0 and peaks.bytes > 0


def test_a_wrong_gradient_is_an_error(parts):
    part = parts["dense SwiGLU"]

    def wrong(variables, constants):
        layer, x = variables
        return part.run((layer, jax.lax.stop_gradient(x)), constants)

    broken = components.Part(**{**vars(part), "run": wrong})
    assert roofline.time_part(broken, repeats=1)[1].error >= 1


def test_the_roof_that_applies_is_chosen_by_intensity():
    peaks = Peaks(flops=100.0, bytes=10.0)
    fast = Measured(part="a", direction="forward", flops=1000, bytes=10, seconds=20.0)
    moving = Measured(part="b", direction="forward", flops=10, bytes=100, seconds=20.0)
    still = Measured(part="c", direction="forward", flops=0, bytes=100, seconds=100.0)
    assert (peaks.ridge, fast.bound(peaks), moving.bound(peaks)) == (10, "compute", "memory")
    assert (fast.of_roof(peaks), moving.of_roof(peaks), still.of_roof(peaks)) == (0.5, 0.5, 0.1)
    sorting = Measured(part="d", direction="forward", flops=1000, bytes=10, seconds=1e4, sorts=True)
    everything = [fast, moving, still, sorting]
    assert roofline.farthest(everything, peaks, bound="compute") is fast
    assert roofline.farthest(everything, peaks, bound="memory") is still
    assert roofline.farthest(everything, peaks, bound="sorting") is sorting
    assert roofline.farthest([moving, still, sorting], peaks, bound="compute") is moving


def test_references_are_the_countable_execution(parts):
    """What the ratio of the experts means: the fast path is not compared with itself."""
    assert COUNTABLE.grouped_matmul.keywords == {"implementation": "ragged"}
    primitives = {
        site.eqn.primitive.name for site in sites(parts["expert layer"].reference, parts["expert layer"].variables, ())
    }
    assert "ragged_dot_general" in primitives
