"""The mistakes: what is replaced where, who made it, and the test that has to fail.

Each replaces a text that stands exactly once in its file. `tests/museum` applies every one to a copy of the package and
runs its test; `patched.py` applies it in the process of the notebook.
"""

from dataclasses import dataclass
from typing import Literal

Probe = Literal["forward", "fp8", "step"]
ROUTING, EXPERTS = "dsv3lab/model/routing.py", "dsv3lab/model/experts.py"
ATTENTION, ROPE = "dsv3lab/model/attention.py", "dsv3lab/model/rope.py"
DEEPSEEK, MTP, FP8 = "dsv3lab/model/deepseek.py", "dsv3lab/model/mtp.py", "dsv3lab/model/fp8.py"
LOSSES, STEP = "dsv3lab/train/losses.py", "dsv3lab/train/step.py"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One mistake."""

    name: str
    title: str
    """What the wrong code does."""
    why: str
    """Why it is wrong, or what it costs."""
    source: str
    """Where it was found or warned of."""
    file: str
    right: str
    wrong: str
    test: str
    """The test that fails, below `tests/`."""
    also: tuple[tuple[str, str, str], ...] = ()
    """Further texts of the same mistake: file, right, wrong."""
    probe: Probe = "forward"
    """Where it shows: in a forward pass, in FP8 products, or only in a training step."""
    trains: bool = False
    """Whether the notebook trains with it: each training is a program of its own to compile."""

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All texts: file, right, wrong."""
        return ((self.file, self.right, self.wrong), *self.also)


MISTAKES = (
    Mistake(
        name="zero_mask",
        title="masked groups get 0, not minus infinity",
        why="once the biased scores of the chosen groups are negative, experts of the excluded groups win",
        source="vLLM #13474; deepseek-ai/DeepSeek-V3 #741; the first modeling_deepseek.py on Hugging Face",
        file=ROUTING,
        right="jnp.where(reachable[..., None], grouped, -jnp.inf)",
        wrong="jnp.where(reachable[..., None], grouped, 0.0)",
        test="model/test_routing.py::test_excluded_groups_cannot_win_against_negative_biased_scores",
        trains=True,
    ),
    Mistake(
        name="group_max",
        title="a group is as good as its best expert",
        why="V2's rule; in V3 a group's score is the sum of its two best",
        source="vLLM #13474",
        file=ROUTING,
        right='group_best=1 if config.topk_method == "group_limited_greedy" else 2',
        wrong="group_best=1",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="biased_gates",
        title="the selection bias leaks into the gates",
        why="the bias is for the choice only; in the gates it disturbs the output, which is what it was to avoid",
        source="MaxText #1492 (scores from before the bias)",
        file=ROUTING,
        right="return ids, gate_weights(scores, ids,",
        wrong="return ids, gate_weights(scores if self.bias is None else scores + self.bias, ids,",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="softmax_scores",
        title="scores by softmax, as in V2",
        why="V3's affinity is a sigmoid of each expert on its own (Eq. 15)",
        source="NVIDIA/TensorRT-Model-Connect #669",
        file=ROUTING,
        right="return jax.nn.softmax(affinity, axis=-1) if self.softmax else jax.nn.sigmoid(affinity)",
        wrong="return jax.nn.softmax(affinity, axis=-1)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="router_bf16",
        title="the router multiplies in bfloat16",
        why="near ties flip experts, a few tokens in a hundred",
        source="deepseek-ai/DeepSeek-V3 #696; vLLM #14027",
        file=ROUTING,
        right="affinity = x.astype(jnp.float32) @ self.weight.astype(jnp.float32)",
        wrong="affinity = (x.astype(jnp.bfloat16) @ self.weight.astype(jnp.bfloat16)).astype(jnp.float32)",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="no_scaling",
        title="the gates are not multiplied by routed_scaling_factor",
        why="2.5 stands in the configuration and the code, not in Eq. 13",
        source="facts of the paper against the code; sglang #8511 (applied on one of two paths)",
        file=ROUTING,
        right="return weights * scale",
        wrong="return weights",
        test="model/test_routing.py::test_no_gradient_reaches_selection_and_gates_sum_to_the_scale",
    ),
    Mistake(
        name="shared_scaled",
        title="the shared expert is divided by routed_scaling_factor",
        why="a factor on the sum of both is made up for where it was never applied",
        source="sglang #28237",
        file=EXPERTS,
        right="out = out + self.shared(x, execution=execution)",
        wrong="out = out + self.shared(x, execution=execution) / self.router.scale",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="balance_times_top",
        title="the balance loss is K times too large",
        why="f is a share of the K choices of each token: N/(K T) times the count, so that even routing costs alpha",
        source="MaxText, layers/moe.py at e591f30c",
        file=ROUTING,
        right="f = jnp.sum(wanted * mask[..., None], axis=1) * experts / (top * jnp.maximum(length, 1))",
        wrong="f = jnp.sum(wanted * mask[..., None], axis=1) * experts / jnp.maximum(length, 1)",
        test="model/test_routing.py::test_a_uniform_router_gives_exactly_one",
    ),
    Mistake(
        name="balance_softmax",
        title="the balance loss normalises sigmoid scores by softmax",
        why="P is a score over the sum of scores (Eq. 19, 20); a softmax of numbers between 0 and 1 is nearly flat",
        source="Megatron-LM #1438",
        file=ROUTING,
        right="share = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)\n    p =",
        wrong="share = jax.nn.softmax(scores, axis=-1)\n    p =",
        test="model/test_routing.py::test_balance_is_that_of_the_numpy_reading_sequence_by_sequence",
    ),
    Mistake(
        name="balance_biased",
        title="the balance loss is made of biased scores",
        why="it then says what the bias did, not what the scores ask for",
        source="MaxText, layers/moe.py at e591f30c",
        file=EXPERTS,
        right="balance=balance_loss(scores.reshape(batch, seq, -1), valid",
        wrong="balance=balance_loss((scores + (0 if self.router.bias is None else self.router.bias))"
        ".reshape(batch, seq, -1), valid",
        test="model/test_experts.py::test_an_expert_layer_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="loads_doubled",
        title="loads are counted in the recomputed forward pass, too",
        why="the sign of the update does not notice; every figure of balance and capacity does",
        source="torchtitan #1593; NeMo Automodel #3247",
        file=ROUTING,
        right="return jnp.sum(chosen, axis=0, dtype=jnp.int32)",
        wrong="return 2 * jnp.sum(chosen, axis=0, dtype=jnp.int32)",
        test="model/test_routing.py::test_loads_count_the_selection_of_valid_tokens",
    ),
    Mistake(
        name="no_mscale",
        title="the softmax scale lacks YaRN's factor",
        why="1.37 squared for V3; the first position, with one key to look at, is still right",
        source="onnxruntime/mobius #548; transformers #47435",
        file=ROPE,
        right="return scale if yarn is None else scale * yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2",
        wrong="return scale",
        test="model/test_attention.py::test_yarn_reproduces_the_published_numbers_of_v3",
    ),
    Mistake(
        name="wrong_mscale",
        title="the softmax scale is made of mscale, not of mscale_all_dim",
        why="equal for V3, so nothing shows until a configuration has two values",
        source="Megatron-LM #1429",
        file=ROPE,
        right="scale * yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2",
        wrong="scale * yarn_mscale(yarn.factor, yarn.mscale) ** 2",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="reversed_scale",
        title="scores are multiplied by the root of the width, not divided",
        why="the softmax is saturated from the start",
        source="MaxText #1370",
        file=ROPE,
        right="scale = config.qk_head_dim**-0.5",
        wrong="scale = config.qk_head_dim**0.5",
        test="model/test_attention.py::test_yarn_reproduces_the_published_numbers_of_v3",
        trains=True,
    ),
    Mistake(
        name="half_split_rope",
        title="rotary pairs are (i, i + d/2), not (2i, 2i + 1)",
        why="the released weights are interleaved; training from scratch would not notice",
        source="HabanaAI/vllm-fork #2042; hw-native-sys/pypto-lib #244",
        file=ROPE,
        right="pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)",
        wrong="pairs = jnp.swapaxes(x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1), -1, -2)",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
        trains=True,
    ),
    Mistake(
        name="rope_first",
        title="the rotary part of the latent product is read from its front",
        why="V3 keeps it behind the latent; the indexer of V3.2 has it in front",
        source="ml-explore/mlx-lm #512 (the two orders side by side)",
        file=ATTENTION,
        right="latent, key_rope = jnp.split(joint, [joint.shape[-1] - self.rope], axis=-1)",
        wrong="key_rope, latent = jnp.split(joint, [self.rope], axis=-1)",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="no_latent_norm",
        title="the latent is expanded without its norm",
        why="Eq. 1 to 11 do not show the norm; one sentence of section 4.2 and the released code do",
        source="DeepSeek-V3 report, Eq. 1-11 against 4.2 and model.py",
        file=ATTENTION,
        right="matmul(self.latent_norm(latent), self.latent_up,",
        wrong="matmul(latent, self.latent_up,",
        test="model/test_attention.py::test_mla_is_that_of_the_numpy_reading",
        trains=True,
    ),
    Mistake(
        name="mtp_not_shifted",
        title="MTP is given the token that the main model has seen",
        why="depth 1 looks at Emb(t_{i+1}); without the shift it predicts two tokens ahead from one token less",
        source="wyf3/llm_related #20; FlagScale #337",
        file=DEEPSEEK,
        right="segments, depth=depth)",
        wrong="segments, depth=depth - 1)",
        test="model/test_deepseek.py::test_influence_matrix_shows_causality_and_the_alignment_of_mtp",
    ),
    Mistake(
        name="mtp_swapped",
        title="MTP joins [hidden; embedding], as Eq. 21 is written",
        why="the released eh_proj expects the embedding first; training from scratch would not notice",
        source="Megatron-LM #1588; sglang #6423",
        file=MTP,
        right="jnp.concatenate([self.embedding_norm(embedded), self.hidden_norm(hidden)], axis=-1)",
        wrong="jnp.concatenate([self.hidden_norm(hidden), self.embedding_norm(embedded)], axis=-1)",
        test="model/test_deepseek.py::test_forward_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="mtp_pre_norm",
        title="MTP is given the state from before the final norm",
        why="the report does not say which; on the released weights it is the one after",
        source="deepseek-ai/DeepSeek-V3 #839",
        file=DEEPSEEK,
        right="depths, previous = [], hidden",
        wrong="depths, previous = [], h",
        test="model/test_deepseek.py::test_forward_is_that_of_the_numpy_reading",
    ),
    Mistake(
        name="mtp_mean",
        title="the loss of depth k is divided by its T - k terms",
        why="Eq. 24 divides by T at every depth",
        source="DeepSeek-V3 report, Eq. 24, against the usual mean over terms",
        file=LOSSES,
        right="weights = mask.ravel() / (batch * length)",
        wrong="weights = mask.ravel() / (batch * (length - depth))",
        test="train/test_losses.py::test_losses_follow_equations_21_to_25",
    ),
    Mistake(
        name="sign_before_sum",
        title="each micro-batch takes its own sign, then the signs are summed",
        why="the sign of a sum is not the sum of signs: one large count is outvoted by two small ones",
        source="MaxText, layers/moe.py at e591f30c",
        file=STEP,
        right="        return jax.grad(objective, has_aux=True)(params, part, key)\n",
        wrong="        grads, parts = jax.grad(objective, has_aux=True)(params, part, key)\n"
        "        above = parts.loads * parts.loads.shape[-1] - jnp.sum(parts.loads, axis=-1, keepdims=True)\n"
        "        return grads, eqx.tree_at(lambda p: p.loads, parts, jnp.sign(above))\n",
        test="train/test_step.py::test_loads_of_micro_batches_are_summed_before_the_sign",
        probe="step",
    ),
    Mistake(
        name="mean_subtracted",
        title="the bias update subtracts its mean",
        why="the choice is the same, the bias is not the paper's: Algorithm 1 of arXiv:2408.15664 has no such term",
        source="torchtitan #1506",
        file=STEP,
        right="return bias + speed * direction.astype(bias.dtype)",
        wrong="step = speed * direction.astype(bias.dtype)\n"
        "    return bias + step - jnp.mean(step, axis=-1, keepdims=True)",
        test="train/test_step.py::test_bias_update_is_that_of_the_paper",
        probe="step",
    ),
    Mistake(
        name="bias_trained",
        title="the router bias is a parameter of the optimizer",
        why="its gradient is zero, but weight decay pulls it back to zero",
        source="PaddleNLP #9876 (review)",
        file=DEEPSEEK,
        right="[False] * len(biases)",
        wrong="[True] * len(biases)",
        also=(("dsv3lab/train/optimizer.py", 'not in ("embedding", "bias")', '!= "embedding"'),),
        test="model/test_deepseek.py::test_router_biases_are_the_only_arrays_that_are_not_trained_and_travel_as_data",
        probe="step",
    ),
    Mistake(
        name="fp8_scales_transposed",
        title="scales of weight blocks are read in the other order",
        why="kernels want them column by column, checkpoints hold them row by row; on square weights no shape complains",
        source="vLLM #27606 (a transpose taken out)",
        file=FP8,
        right="return values * spread(quantised.scales, values.shape, tile)",
        wrong="scales = quantised.scales\n"
        "    if tile == (TILE, TILE):\n"
        "        scales = jnp.swapaxes(scales, -1, -2).reshape(scales.shape)\n"
        "    return values * spread(scales, values.shape, tile)",
        test="model/test_fp8.py::test_the_three_products_of_a_layer_are_those_of_the_recipe",
        probe="fp8",
    ),
    Mistake(
        name="fp8_divided",
        title="values are divided by weight_scale_inv",
        why="the name says inverse; it is the factor to multiply with",
        source="README_WEIGHTS of deepseek-ai/DeepSeek-V3",
        file=FP8,
        right="return values * spread(quantised.scales, values.shape, tile)",
        wrong="return values / spread(quantised.scales, values.shape, tile)",
        test="model/test_fp8.py::test_the_three_products_of_a_layer_are_those_of_the_recipe",
        probe="fp8",
    ),
    Mistake(
        name="fp8_rounded_late",
        title="the scale is rounded to a power of two after it was used",
        why="values were divided by another scale than the one that is stored: up to twice too large",
        source="transformers #46763",
        file=FP8,
        right="return Quantised(cast(x / spread(scales, x.shape, tile), format), scales)",
        wrong="return Quantised(cast(x / spread(scale_of(amax, format=format), x.shape, tile), format), scales)",
        test="model/test_fp8.py::test_the_three_products_of_a_layer_are_those_of_the_recipe",
        probe="fp8",
    ),
    Mistake(
        name="fp8_not_clipped",
        title="numbers are cast to E4M3 without a clip",
        why="JAX and ml_dtypes make NaN of what is above 448, not 448",
        source="tried: jax 0.10.2 and ml_dtypes, 500 becomes NaN",
        file=FP8,
        right="clipped = jnp.clip(x.astype(jnp.float32), -LARGEST[format], LARGEST[format])",
        wrong="clipped = x.astype(jnp.float32)",
        test="model/test_fp8.py::test_casts_are_those_of_ml_dtypes_bit_for_bit",
        probe="fp8",
    ),
)
