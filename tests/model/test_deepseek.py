"""The whole model: the NumPy reading, what may influence what, and equal results on every way of running it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dsv3lab as dl
from dsv3lab.model import DeepSeek, Execution, Output, abstract, init, trainable
from dsv3lab.model import reading as reference
from tests.builders import model_config, random_model
from tests.tolerances import MODEL_ATOL, MODEL_RTOL

CONFIG = model_config(num_nextn_predict_layers=2)
MODEL: DeepSeek = random_model(CONFIG)
# Away from one, or the state before the final norm would do for MTP as well as the one after it.
MODEL = eqx.tree_at(lambda m: m.norm.weight, MODEL, jnp.linspace(0.5, 1.5, CONFIG.hidden_size))
BATCH, SEQ = 2, 8
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, CONFIG.vocab_size, (BATCH, SEQ)), jnp.int32)
BIAS = jnp.asarray(np.random.default_rng(4).normal(size=(4, CONFIG.n_routed_experts)) * 0.1, jnp.float32)
BIASED = MODEL.with_bias(BIAS)


POSITIONS, ONE_DOCUMENT = jnp.arange(SEQ)[None], jnp.zeros((BATCH, SEQ), jnp.int32)


@eqx.filter_jit
def compiled(model: DeepSeek, tokens: jax.Array, **options) -> Output:
    return model.forward(tokens, mtp=True, **options)


def forward(
    model: DeepSeek, tokens: jax.Array, *, positions: jax.Array = POSITIONS, segments: jax.Array = ONE_DOCUMENT
) -> Output:
    """The scanned forward pass, compiled once for nearly all tests."""
    return compiled(model, tokens, positions=positions, segments=segments)


def test_forward_is_that_of_the_numpy_reading() -> None:
    layers = [
        jax.tree.map(lambda a, i=i: a[i], block) for s in BIASED.stacks for i in range(s.repeats) for block in s.unit
    ]
    out = forward(BIASED, TOKENS)
    total, balance = 0, []
    for row in range(BATCH):
        hidden, depths, loads, one = reference.forward(BIASED, layers, np.asarray(TOKENS[row]), CONFIG)
        np.testing.assert_allclose(out.hidden[row], hidden, atol=MODEL_ATOL)
        for k, depth in enumerate(depths):
            np.testing.assert_allclose(out.mtp[k][row], depth, atol=MODEL_ATOL)
        total, balance = total + loads, [*balance, one]
    np.testing.assert_array_equal(out.loads, total)
    np.testing.assert_allclose(out.balance, np.mean(balance), rtol=MODEL_RTOL)
    np.testing.assert_allclose(BIASED.unembed(out.hidden), out.hidden @ MODEL.head, atol=MODEL_ATOL)
    logits = eqx.filter_eval_shape(BIASED, TOKENS)
    assert logits.shape == (BATCH, SEQ, CONFIG.vocab_size)


def test_loads_count_every_choice_once_and_leave_the_tails_of_mtp_out() -> None:
    top = CONFIG.num_experts_per_tok
    sums = [BATCH * SEQ * top] * CONFIG.num_moe_layers + [BATCH * (SEQ - k) * top for k in (1, 2)]
    assert jnp.sum(forward(BIASED, TOKENS).loads, axis=1).tolist() == sums


def test_influence_matrix_shows_causality_and_the_alignment_of_mtp() -> None:
    """Token j moves the hidden state at i if j <= i, and that of depth k if j <= i + k: it has seen t_{i+k}."""
    changes = []
    for j in range(SEQ):
        out = forward(MODEL, TOKENS.at[1].set(TOKENS[0].at[j].set((TOKENS[0, j] + 1) % CONFIG.vocab_size)))
        changes.append([np.abs(np.asarray(h[1] - h[0])).max(axis=-1) for h in (out.hidden, *out.mtp)])
    for k, change in enumerate(np.swapaxes(changes, 0, 1)):
        change = change[:, : SEQ - k]
        j, i = np.indices(change.shape)
        assert np.all(change[j <= i + k] > 10 * MODEL_ATOL), f"depth {k}: a past token has no influence"
        assert np.all(change[j > i + k] < MODEL_ATOL), f"depth {k}: a later token is seen"


def test_batch_rows_are_independent() -> None:
    whole = forward(BIASED, TOKENS)
    swapped = forward(BIASED, TOKENS.at[1].set(TOKENS[0, ::-1]))
    np.testing.assert_allclose(swapped.hidden[0], whole.hidden[0], atol=MODEL_ATOL)
    np.testing.assert_allclose(swapped.mtp[1][0], whole.mtp[1][0], atol=MODEL_ATOL)


def test_a_constant_added_to_every_router_bias_changes_nothing() -> None:
    before, after = forward(BIASED, TOKENS), forward(MODEL.with_bias(BIAS - 10.0), TOKENS)
    np.testing.assert_array_equal(after.loads, before.loads)
    np.testing.assert_allclose(after.hidden, before.hidden, atol=MODEL_ATOL)


def test_permuting_experts_permutes_loads_and_nothing_else() -> None:
    order = np.array([3, 2, 0, 1])  # swaps the two groups and reorders one: groups stay together

    def permute(path, leaf):
        name = jax.tree_util.keystr(path)
        if ".router." in name:
            return leaf[..., order]
        if ".experts." in name:
            return leaf[:, order] if "stacks" in name else leaf[order]
        return leaf

    before = forward(BIASED, TOKENS)
    after = forward(jax.tree_util.tree_map_with_path(permute, BIASED), TOKENS)
    np.testing.assert_array_equal(after.loads, before.loads[:, order])
    np.testing.assert_allclose(after.hidden, before.hidden, atol=MODEL_ATOL)
    np.testing.assert_allclose(after.balance, before.balance, rtol=MODEL_RTOL)


@pytest.mark.limit(30)  # compiles two whole gradients; from then on they are in the cache
def test_a_rematerialised_scan_and_plain_unrolled_layers_agree_in_loads_and_gradients() -> None:
    config = model_config(num_hidden_layers=2, first_k_dense_replace=0)
    biased = random_model(config).with_bias(BIAS[:3])

    @eqx.filter_jit
    def run(execution: Execution):
        def loss(model: DeepSeek):
            out = model.forward(TOKENS, mtp=True, execution=execution)
            return sum(jnp.mean(jnp.sin(model.unembed(h))) for h in (out.hidden, *out.mtp)) + out.balance, out.loads

        return eqx.filter_value_and_grad(loss, has_aux=True)(biased)

    (value, loads), gradient = run(Execution(scan=False))
    (value_2, loads_2), gradient_2 = run(Execution(scan=True, remat=jax.checkpoint))
    np.testing.assert_array_equal(loads_2, loads)
    np.testing.assert_allclose(value_2, value, rtol=MODEL_RTOL)
    for a, b in zip(jax.tree.leaves(gradient_2), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=MODEL_ATOL * float(jnp.abs(b).max()) + 1e-12)
    np.testing.assert_array_equal(gradient.bias(), 0)
    learned = jax.tree.leaves(eqx.filter(gradient, trainable(gradient)))
    assert all(float(jnp.abs(g).max()) > 0 for g in learned)


def test_documents_of_one_row_do_not_see_each_other() -> None:
    first, second = TOKENS[0, :4], TOKENS[1, :4]
    rows = jnp.stack([jnp.concatenate([first, second]), jnp.concatenate([second, first])])
    segments = jnp.broadcast_to(jnp.arange(SEQ) // 4, (BATCH, SEQ))
    out = forward(BIASED, rows, positions=POSITIONS % 4, segments=segments)
    for k, hidden in enumerate((out.hidden, *out.mtp)):
        np.testing.assert_allclose(hidden[0, : 4 - k], hidden[1, 4 : SEQ - k], atol=MODEL_ATOL)
        np.testing.assert_allclose(hidden[1, : 4 - k], hidden[0, 4 : SEQ - k], atol=MODEL_ATOL)
    # Multi-token prediction does not look over a document's end either.
    assert jnp.sum(out.loads[-1]) == BATCH * 2 * (4 - 2) * CONFIG.num_experts_per_tok


def test_captured_intermediates_are_those_asked_for_and_change_nothing() -> None:
    """Also: layers unrolled for the capture equal scanned ones, and positions by default equal explicit ones."""
    names = frozenset(MODEL.capture_names())
    assert {"embedding", "layers.0.hidden", "layers.2.router.ids", "mtp.2.router.gates"} <= names
    assert "layers.0.router.ids" not in names  # dense
    out, plain = compiled(BIASED, TOKENS, capture=names), forward(BIASED, TOKENS)
    assert set(out.captured) == names and not plain.captured
    np.testing.assert_allclose(out.hidden, plain.hidden, atol=MODEL_ATOL)
    np.testing.assert_allclose(out.mtp[1], plain.mtp[1], atol=MODEL_ATOL)
    np.testing.assert_array_equal(out.loads, plain.loads)
    np.testing.assert_allclose(out.hidden, BIASED.norm(out.captured["layers.2.hidden"]), atol=MODEL_ATOL)
    counted = np.bincount(np.ravel(out.captured["layers.2.router.ids"]), minlength=CONFIG.n_routed_experts)
    np.testing.assert_array_equal(out.loads[1], counted)


def test_wrong_requests_are_refused_with_the_nearest_name_or_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"'layers.1.hiden'; did you mean 'layers.1.hidden'"):
        MODEL.forward(TOKENS, capture=frozenset({"layers.1.hiden"}))
    with pytest.raises(ValueError, match=r"'mtp.1.hidden'"):
        MODEL.forward(TOKENS, capture=frozenset({"mtp.1.hidden"}))
    with pytest.raises(ValueError, match="more than 2 tokens, got 2"):
        MODEL.forward(TOKENS[:, :2], mtp=True)
    with pytest.raises(ValueError, match=r"\(4, 4\).*got \(2, 4\)"):
        MODEL.with_bias(BIAS[:2])


@pytest.mark.limit(30)  # compiles thirty random draws
def test_init_has_the_configured_deviation_and_abstract_has_its_structure() -> None:
    model, shapes = init(CONFIG, key=jax.random.key(0)), abstract(CONFIG)
    assert jax.tree.structure(model) == jax.tree.structure(shapes)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(shapes), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    for matrix in (model.head, model.stacks[1].unit[0].ffn.experts.gate_up, model.mtp[0].project):
        assert float(jnp.std(matrix)) == pytest.approx(CONFIG.initializer_range, rel=0.15)
    assert float(jnp.std(model.embedding)) == pytest.approx(CONFIG.embedding_initializer_range, rel=0.15)
    np.testing.assert_array_equal(model.bias(), 0)


def test_router_biases_are_the_only_arrays_that_are_not_trained_and_travel_as_data() -> None:
    flags = trainable(MODEL)
    frozen = [p for p, flag in jax.tree_util.tree_leaves_with_path(flags) if not flag]
    assert len(frozen) == 3 and all(jax.tree_util.keystr(path).endswith(".router.bias") for path in frozen)
    np.testing.assert_array_equal(BIASED.bias(), BIAS)


def test_the_671b_model_exists_as_shapes() -> None:
    v3 = dl.config("v3")
    model = dl.abstract(v3)
    main = sum(leaf.size for leaf in jax.tree.leaves((model.embedding, model.stacks, model.norm, model.head)))
    assert main == 671_026_419_200
