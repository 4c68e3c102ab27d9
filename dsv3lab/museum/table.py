"""The mistakes: what is replaced where, who made it, and the test that has to fail.

Each replaces a text that stands exactly once in its file. `tests/museum` applies every one to a copy of the package and
runs its test; `patched.py` applies it in the process of the notebook. Right and wrong are expressions, so that `switch.py`
can put both into one program. Where one text lies within another, the outer one comes first.
"""

from dataclasses import dataclass
from typing import Literal

Probe = Literal["forward", "fp8", "step"]
ROUTING, EXPERTS = "dsv3lab/model/routing.py", "dsv3lab/model/experts.py"
ATTENTION, ROPE = "dsv3lab/model/attention.py", "dsv3lab/model/rope.py"
DEEPSEEK, MTP, FP8 = "dsv3lab/model/deepseek.py", "dsv3lab/model/mtp.py", "dsv3lab/model/fp8.py"
LOSSES, STEP = "dsv3lab/train/losses.py", "dsv3lab/train/step.py"
OPTIMIZER = "dsv3lab/train/optimizer.py"

ROOMS = {
    ROUTING: "routing",
    EXPERTS: "routing",
    ROPE: "attention",
    ATTENTION: "attention",
    DEEPSEEK: "MTP",
    MTP: "MTP",
    LOSSES: "MTP",
    STEP: "bias update",
    OPTIMIZER: "bias update",
    FP8: "FP8",
}
IN_FP8 = "it shows in FP8 products only, and the one program trains in float32; notebook 06 trains in FP8"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake."""

    name: str
    title: str
    """What the wrong code does."""
    why: str
    """Why it is wrong, or what it costs."""
    source: str
    """Where it was found or warned of: issues and pull requests on GitHub, or a file at a commit. What begins with "ours"
    was published by nobody."""
    file: str
    right: str
    wrong: str
    test: str
    """The test that fails, below `tests/`."""
    also: tuple[tuple[str, str, str], ...] = ()
    """Further texts of the same mistake: file, right, wrong."""
    probe: Probe = "forward"
    """Where it shows: in a forward pass, in FP8 products, or only in a training step."""
    no_curve: str = ""
    """Why the notebook does not train with it; empty: it does."""
    counts_tokens: bool = True
    """Whether its loads are still numbers of tokens, so that MaxVio means something."""

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All texts: file, right, wrong."""
        return ((self.file, self.right, self.wrong), *self.also)

    @property
    def is_argument(self) -> bool:
        """Whether one compiled program of float32 can hold it beside the right code: one text, not of FP8 products."""
        return not self.also and self.probe != "fp8"

    @property
    def published(self) -> bool:
        """Whether somebody else made it, or warned of it, in public."""
        return not self.source.startswith("ours")

    @property
    def room(self) -> str:
        """Where in the museum it hangs: by the file that it spoils."""
        return ROOMS[self.file]


MISTAKES = (
    Mistake(
        name="zero_mask",
        title="masked groups get 0, not minus infinity",
        why="once the biased scores of the chosen groups are negative, experts of the excluded groups win",
        source="vLLM #13474; deepseek-ai/DeepSeek-V3 #741; ktransformers #1148 (the first modeling_deepseek.py)",
        file=ROUTING,
        right="jnp.where(reachable[..., None], grouped, -jnp.inf)",
        wrong="jnp.where(reachable[..., None], grouped, 0.0)",
        test="model/test_routing.py::test_excluded_groups_cannot_win_against_negative_biased_scores",
    ),
    Mistake(
        name="group_max",
        title="a group is as good as its best expert",
        why="V2's rule; in V3 a group's score is the sum of its two best",
        source="vLLM #13474",
        file=ROUTING,
        right="jnp.sum(jax.lax.top_k(grouped, group_best)[0], axis=-1)",
        wrong="jnp.max(grouped, axis=-1)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="biased_gates",
        title="the selection bias leaks into the gates",
        why="the bias is for the choice only; in the gates it disturbs the output, which is what it was to avoid",
        source="vLLM #12002; transformers #41647",
        file=ROUTING,
        right="gate_weights(scores, ids, scale=self.scale, normalise=self.normalise)",
        wrong="gate_weights("
        "scores if self.bias is None else scores + self.bias, ids, scale=self.scale, normalise=self.normalise)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="softmax_scores",
        title="scores by softmax, as in V2",
        why="V3's affinity is a sigmoid of each expert on its own (Eq. 15)",
        source="NVIDIA/TensorRT-Model-Connect #662, mended in #669",
        file=ROUTING,
        right="jax.nn.softmax(affinity, axis=-1) if self.softmax else jax.nn.sigmoid(affinity)",
        wrong="jax.nn.softmax(affinity, axis=-1)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="router_bf16",
        title="the router multiplies in bfloat16",
        why="near ties flip experts, a few tokens in a hundred",
        source="deepseek-ai/DeepSeek-V3 #696; vLLM #14027",
        file=ROUTING,
        right="x.astype(jnp.float32) @ self.weight.astype(jnp.float32)",
        wrong="(x.astype(jnp.bfloat16) @ self.weight.astype(jnp.bfloat16)).astype(jnp.float32)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="no_scaling",
        title="the gates are not multiplied by routed_scaling_factor",
        why="2.5 stands in the configuration and the code, not in Eq. 13",
        source="sglang #8511 (applied on one of two paths)",
        file=ROUTING,
        right="weights * scale",
        wrong="weights",
        test="model/test_routing.py::test_no_gradient_reaches_selection_and_gates_sum_to_the_scale",
    ),
    Mistake(
        name="shared_scaled",
        title="the shared expert is divided by routed_scaling_factor",
        why="a factor on the sum of both is made up for where it was never applied",
        source="sglang #28237 (the fused shared expert on AMD), #29059",
        file=EXPERTS,
        right="self.shared(x, execution=execution)",
        wrong="self.shared(x, execution=execution) / self.router.scale",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="balance_times_top",
        title="the balance loss is K times too large",
        why="f is a share of the K choices of each token: N/(K T) times the count, so that even routing costs alpha",
        source="MaxText, src/maxtext/layers/moe.py at e591f30c: load_balance_loss",
        file=ROUTING,
        right="(top * jnp.maximum(length, 1))",
        wrong="jnp.maximum(length, 1)",
        test="model/test_routing.py::test_a_uniform_router_gives_exactly_one",
    ),
    Mistake(
        name="balance_softmax",
        title="the balance loss normalises sigmoid scores by softmax",
        why="P is a score over the sum of scores (Eq. 19, 20); a softmax of numbers between 0 and 1 is nearly flat",
        source="Megatron-LM #1438",
        file=ROUTING,
        right="jnp.sum(share * mask[..., None], axis=1)",
        wrong="jnp.sum(jax.nn.softmax(scores, axis=-1) * mask[..., None], axis=1)",
        test="model/test_routing.py::test_balance_is_that_of_the_numpy_reading_sequence_by_sequence",
    ),
    Mistake(
        name="balance_biased",
        title="the balance loss is made of biased scores",
        why="it then says what the bias did, not what the scores ask for",
        source="MaxText, src/maxtext/layers/moe.py at e591f30c: the softmax of gate_logits, which have the bias in them",
        file=EXPERTS,
        right="balance_loss(scores.reshape(batch, seq, -1), valid, top=self.router.top)",
        wrong="balance_loss("
        "(scores + (0 if self.router.bias is None else self.router.bias)).reshape(batch, seq, -1), valid, top=self.router.top)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="loads_doubled",
        title="loads are counted in the recomputed forward pass, too",
        why="neither the sign of the update nor MaxVio, a ratio, notices; every count of tokens does",
        source="torchtitan #1593; NeMo Automodel #3247",
        file=ROUTING,
        right="jnp.sum(chosen, axis=0, dtype=jnp.int32)",
        wrong="2 * jnp.sum(chosen, axis=0, dtype=jnp.int32)",
        test="model/test_routing.py::test_loads_count_the_selection_of_valid_tokens",
    ),
    Mistake(
        name="no_mscale",
        title="the softmax scale lacks YaRN's factor",
        why="1.37 squared for V3; the first position, with one key to look at, is still right",
        source="onnxruntime/mobius #548; transformers #47435",
        file=ROPE,
        right="scale if yarn is None else scale * yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2",
        wrong="scale",
        test="model/test_attention.py::test_yarn_reproduces_the_published_numbers_of_v3",
    ),
    Mistake(
        name="wrong_mscale",
        title="the softmax scale is made of mscale, not of mscale_all_dim",
        why="equal for V3, so nothing shows until a configuration has two values",
        source="Megatron-LM #1429",
        file=ROPE,
        right="yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2",
        wrong="yarn_mscale(yarn.factor, yarn.mscale) ** 2",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="reversed_scale",
        title="scores are multiplied by the root of the width, not divided",
        why="the softmax is saturated from the start",
        source='MaxText #1370 ("reversed softmax_scale": divided by d^-1/2)',
        file=ROPE,
        right="config.qk_head_dim**-0.5",
        wrong="config.qk_head_dim**0.5",
        test="model/test_attention.py::test_yarn_reproduces_the_published_numbers_of_v3",
    ),
    Mistake(
        name="half_split_rope",
        title="rotary pairs are (i, i + d/2), not (2i, 2i + 1)",
        why="the released weights are interleaved; training from scratch would not notice",
        source="hw-native-sys/pypto-lib #244 (halves until then; for V4)",
        file=ROPE,
        right="x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)",
        wrong="jnp.swapaxes(x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1), -1, -2)",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="rope_first",
        title="the rotary part of the latent product is read from its front",
        why="V3 keeps it behind the latent; the indexer of V3.2 has it in front",
        source="Megatron-LM #2733 (the same mix-up in the indexer of V3.2); mlx-lm #512 has the indexer's order",
        file=ATTENTION,
        right="jnp.split(joint, [joint.shape[-1] - self.rope], axis=-1)",
        wrong="jnp.split(joint, [self.rope], axis=-1)[::-1]",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="no_latent_norm",
        title="the latent is expanded without its norm",
        why="Eq. 1 to 11 do not show the norm; one sentence of section 4.2 and the released code do",
        source="ours: Eq. 1-11 of the report against its section 4.2 and model.py; sglang #3072 asks about the query's norm",
        file=ATTENTION,
        right="self.latent_norm(latent)",
        wrong="latent",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="mtp_not_shifted",
        title="MTP is given the token that the main model has seen",
        why="depth 1 looks at Emb(t_{i+1}); without the shift it predicts two tokens ahead from one token less",
        source="wyf3/llm_related #20; FlagScale #337 (review)",
        file=DEEPSEEK,
        right="ahead(embedded, self.embedding[0].astype(embedded.dtype), segments, depth=depth)",
        wrong="ahead(embedded, self.embedding[0].astype(embedded.dtype), segments, depth=depth - 1)",
        test="model/test_deepseek.py::test_influence_matrix_shows_causality_and_the_alignment_of_mtp",
    ),
    Mistake(
        name="mtp_swapped",
        title="MTP joins [hidden; embedding], as Eq. 21 is written",
        why="the released eh_proj expects the embedding first; training from scratch would not notice",
        source="asked about in Megatron-LM #1588 and sglang #6423, with the answer",
        file=MTP,
        right="jnp.concatenate([self.embedding_norm(embedded), self.hidden_norm(hidden)], axis=-1)",
        wrong="jnp.concatenate([self.hidden_norm(hidden), self.embedding_norm(embedded)], axis=-1)",
        test="model/test_deepseek.py::test_forward_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="mtp_pre_norm",
        title="MTP is given the state from before the final norm",
        why="the report does not say which; on the released weights it is the one after",
        source="vLLM #47448; deepseek-ai/DeepSeek-V3 #839 asks",
        file=DEEPSEEK,
        right="[], hidden",
        wrong="[], h",
        test="model/test_deepseek.py::test_forward_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="mtp_mean",
        title="the loss of depth k is divided by its T - k terms",
        why="Eq. 24 divides by T at every depth",
        source="ours: Eq. 24 of the report against the usual mean over terms",
        file=LOSSES,
        right="mask.ravel() / (batch * length)",
        wrong="mask.ravel() / (batch * (length - depth))",
        test="train/test_losses.py::test_losses_follow_equations_21_to_25",
    ),
    Mistake(
        name="sign_before_sum",
        title="each micro-batch takes its own sign, then the signs are summed",
        why="the sign of a sum is not the sum of signs: one large count is outvoted by two small ones",
        source="torchtitan #1304; MaxText, src/maxtext/layers/moe.py at e591f30c: the mean of bias_updates over chunks",
        file=STEP,
        right="jnp.add",
        wrong="(lambda a, b: a + (b if jnp.issubdtype(b.dtype, jnp.inexact) else"
        " jnp.sign(b * b.shape[-1] - jnp.sum(b, axis=-1, keepdims=True))))",
        test="train/test_step.py::test_loads_of_micro_batches_are_summed_before_the_sign",
        probe="step",
        counts_tokens=False,
    ),
    Mistake(
        name="mean_subtracted",
        title="the bias update subtracts its mean",
        why="the choice is the same, the bias is not the paper's: Algorithm 1 of arXiv:2408.15664 has no such term",
        source="torchtitan #1506",
        file=STEP,
        right="speed * direction.astype(bias.dtype)",
        wrong="speed * (direction - jnp.mean(direction, axis=-1, keepdims=True)).astype(bias.dtype)",
        test="train/test_step.py::test_bias_update_is_that_of_the_paper",
        probe="step",
    ),
    Mistake(
        name="bias_trained",
        title="the router bias is a parameter of the optimizer",
        why="its gradient is zero, but weight decay pulls it back to zero",
        source="PaddleNLP #9876 (review)",
        file=OPTIMIZER,
        right='not in ("embedding", "bias")',
        wrong='!= "embedding"',
        also=((DEEPSEEK, "[False] * len(biases)", "[True] * len(biases)"),),
        test="model/test_deepseek.py::test_router_biases_are_the_only_arrays_that_are_not_trained_and_travel_as_data",
        probe="step",
    ),
    Mistake(
        name="fp8_divided",
        title="values are divided by weight_scale_inv",
        why="the name says inverse; it is the factor to multiply with",
        source="ours: README_WEIGHTS of deepseek-ai/DeepSeek-V3 has to say that it multiplies",
        file=FP8,
        right="values * spread(quantised.scales, values.shape, tile)",
        wrong="values / spread(quantised.scales, values.shape, tile)",
        test="model/test_fp8.py::test_the_three_products_of_a_layer_are_those_of_the_recipe",
        probe="fp8",
        no_curve=IN_FP8,
    ),
    Mistake(
        name="fp8_scales_transposed",
        title="scales of weight blocks are read in the other order",
        why="kernels want them column by column, checkpoints hold them row by row; on square weights no shape complains",
        source="vLLM #44630 (transposed in place, then read by MLA); #27606 takes a transpose out",
        file=FP8,
        right="spread(quantised.scales, values.shape, tile)",
        wrong="spread("
        "jnp.swapaxes(quantised.scales, -1, -2).reshape(quantised.scales.shape) if tile == (TILE, TILE) else quantised.scales,"
        " values.shape, tile)",
        test="model/test_fp8.py::test_the_three_products_of_a_layer_are_those_of_the_recipe",
        probe="fp8",
        no_curve=IN_FP8,
    ),
    Mistake(
        name="fp8_rounded_late",
        title="the scale is rounded to a power of two after it was used",
        why="values were divided by another scale than the one that is stored: up to twice too large",
        source="transformers #46763",
        file=FP8,
        right="x / spread(scales, x.shape, tile)",
        wrong="x / spread(scale_of(amax, format=format), x.shape, tile)",
        test="model/test_fp8.py::test_the_three_products_of_a_layer_are_those_of_the_recipe",
        probe="fp8",
        no_curve=IN_FP8,
    ),
    Mistake(
        name="fp8_not_clipped",
        title="numbers are cast to E4M3 without a clip",
        why="JAX and ml_dtypes make NaN of what is above 448, not 448",
        source="transformers #42775; jax-ml/ml_dtypes #400",
        file=FP8,
        right="jnp.clip(x.astype(jnp.float32), -LARGEST[format], LARGEST[format])",
        wrong="x.astype(jnp.float32)",
        test="model/test_fp8.py::test_casts_are_those_of_ml_dtypes_bit_for_bit",
        probe="fp8",
        no_curve=IN_FP8,
    ),
)
