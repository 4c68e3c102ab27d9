"""The walk over traced programs against counts done by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dsv3lab import program

X, W = jax.ShapeDtypeStruct((6, 4), jnp.float32), jax.ShapeDtypeStruct((4, 4), jnp.float32)


@jax.custom_vjp
def _times(x, w):
    return x @ w


_times.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy))


def _scanned(x, w, length):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=length)[0]


def test_a_product_and_its_gradient():
    assert program.flops(jnp.matmul, X, W) == 2 * 6 * 4 * 4
    assert program.flops(jax.value_and_grad(lambda w, x: ((x @ w) ** 2).sum()), W, X) == 2 * 2 * 6 * 4 * 4
    assert (
        program.flops(jax.value_and_grad(lambda w, x: ((x @ w) ** 2).sum(), argnums=(0, 1)), W, X) == 3 * 2 * 6 * 4 * 4
    )


def test_a_scan_counts_its_length_and_remat_counts_what_it_repeats():
    assert program.flops(lambda x, w: _scanned(x, w, 5), X, W) == 5 * 2 * 6 * 4 * 4
    assert program.flops(jax.jit(lambda x, w: _scanned(_scanned(x, w, 3), w, 2)), X, W) == 5 * 2 * 6 * 4 * 4
    loss = jax.checkpoint(lambda w, x: (jnp.tanh(jnp.tanh(x @ w) @ w) ** 2).sum())
    plain = program.flops(jax.grad(lambda w, x: (jnp.tanh(jnp.tanh(x @ w) @ w) ** 2).sum()), W, X)
    assert program.flops(jax.grad(loss), W, X) == plain + 2 * 2 * 6 * 4 * 4


def test_a_custom_gradient_is_counted_in_both_directions():
    assert program.flops(_times, X, W) == 2 * 6 * 4 * 4
    assert program.flops(jax.grad(lambda x, w: (_times(x, w) ** 2).sum(), argnums=(0, 1)), X, W) == 3 * 2 * 6 * 4 * 4


def test_a_ragged_product_costs_rows_times_one_matrix_forward_and_backward():
    x = jax.ShapeDtypeStruct((10, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 4, 7), jnp.float32)
    sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
    assert program.flops(jax.lax.ragged_dot, x, w, sizes) == 2 * 10 * 4 * 7
    gradient = jax.grad(lambda x, w, s: (jax.lax.ragged_dot(x, w, s) ** 2).sum(), argnums=(0, 1))
    assert program.flops(gradient, x, w, sizes) == 3 * 2 * 10 * 4 * 7


def test_a_loop_of_unknown_length_is_refused():
    looped = lambda x, w: jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: h @ w, x)  # noqa: E731
    with pytest.raises(ValueError, match="dot_general.*while"):
        program.flops(looped, X, W)


def test_collectives_carry_axis_bytes_and_repetitions():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)

    def body(x, w):
        def layer(h, _):
            h = jax.lax.psum(h @ w, "expert") / 2
            return jax.lax.pcast(h, "expert", to="varying"), None

        h, _ = jax.lax.scan(layer, jax.lax.pcast(x, "expert", to="varying"), length=3)
        h = jax.lax.all_to_all(h, "expert", split_axis=0, concat_axis=0)
        return jax.lax.psum(h.sum(), ("data", "expert"))

    fn = jax.shard_map(body, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    found = program.collectives(fn, x, W)
    assert [(c.name, c.axes, c.bytes, c.count) for c in found] == [
        ("all_reduce", ("expert",), 2 * 4 * 4, 3),
        ("all_to_all", ("expert",), 2 * 4 * 4, 1),
        ("all_reduce", ("data", "expert"), 4, 1),
    ]
    assert found[0].shape == (2, 4) and found[0].dtype == "float32"
    assert program.flops(fn, x, W) == 8 * 3 * 2 * 2 * 4 * 4
