"""The defects, one at a time: what is replaced where, which gates must fail, and which others may.

Each replaces a text that stands exactly once in its file. Sizes are those of the default profile, at which the code as
it is passes every gate; where a run is made shorter, gates on learning are listed under `also`.
"""

from dataclasses import dataclass

LEARNING = ("train_bigram", "train_gzip_context", "train_gzip_document", "train_dead_experts")
# A gate for real devices: simulated ones share the cores, so on two of them eight reach 0.08 to 0.13 of eight times one.
SCALING_HERE = ("phase.gates.dp_scaling.requires.device=cpu", "phase.gates.dp_scaling.threshold=0.04")
FEW_TOKENS, SOME_TOKENS = "train.tokens=24576", "train.tokens=409600"
# One layer, and so few steps that the gate on the loss is skipped.
FEW_FP8_STEPS = ("profile.fp8_steps=4", "study.fp8.layers=1", "study.fp8.seeds=2")


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A defect and the stage that notices it."""

    phase: int
    stage: str
    what: str
    file: str
    old: str
    new: str
    gates: tuple[str, ...]
    """Gates that must fail."""
    also: tuple[str, ...] = ()
    """Gates that may fail, too: the defect reaches them, or the run is too short for them. All others must pass."""
    overrides: tuple[str, ...] = ()


MUTATIONS = (
    Mutation(
        phase=1,
        stage="mla",
        what="the latent is expanded without its norm",
        file="dsv3lab/model/attention.py",
        old="matmul(self.latent_norm(latent), self.latent_up, ",
        new="matmul(latent, self.latent_up, ",
        gates=("mla_error",),
    ),
    Mutation(
        phase=1,
        stage="mla",
        what="each query sees one key too many",
        file="dsv3lab/model/causal.py",
        old="[:, None] >= jnp.arange(keys)",
        new="[:, None] >= jnp.arange(keys) - 1",
        gates=("mla_causality",),
        also=("mla_error",),
    ),
    Mutation(
        phase=1,
        stage="mla",
        what="the cache forgets the rotary key",
        file="dsv3lab/plan/count.py",
        old="(config.kv_lora_rank + config.qk_rope_head_dim) * bytes_per_element",
        new="config.kv_lora_rank * bytes_per_element",
        gates=("mla_cache_v3",),
    ),
    Mutation(
        phase=1,
        stage="mla",
        what="attention goes over blocks of two queries",
        file="dsv3lab/model/causal.py",
        old="BLOCK, MOST_BLOCKS = 64, 16",
        new="BLOCK, MOST_BLOCKS = 2, 128",
        gates=("mla_throughput",),
    ),
    Mutation(
        phase=1,
        stage="routing",
        what="the bias leaks into the gates",
        file="dsv3lab/model/routing.py",
        old="return ids, gate_weights(scores, ids,",
        new="return ids, gate_weights(scores + self.bias, ids,",
        gates=("routing_error",),
        also=("routing_balance", "routing_loss"),
        overrides=("profile.routing_steps=4",),
    ),
    Mutation(
        phase=1,
        stage="routing",
        what="a group is as good as its best expert",
        file="dsv3lab/model/routing.py",
        old="jax.lax.top_k(grouped, group_best)",
        new="jax.lax.top_k(grouped, 1)",
        gates=("routing_choice",),
        also=("routing_error", "routing_balance", "routing_loss"),
        overrides=("profile.routing_steps=4",),
    ),
    Mutation(
        phase=1,
        stage="routing",
        what="the bias moves the wrong way",
        file="dsv3lab/train/step.py",
        old="return bias + speed * direction",
        new="return bias - speed * direction",
        gates=("routing_balance",),
        also=("routing_loss",),
    ),
    Mutation(
        phase=1,
        stage="routing",
        what="the bias update shrinks the weights, too",
        file="dsv3lab/train/step.py",
        old="model: DeepSeek = eqx.combine(eqx.apply_updates(params, updates), rest)",
        new="shrunk = jax.tree.map(lambda p: p * (1 - config.loss.bias_update_speed), params)\n"
        "    model: DeepSeek = eqx.combine(eqx.apply_updates(shrunk, updates), rest)",
        gates=("routing_loss",),
        also=("routing_balance",),
    ),
    Mutation(
        phase=1,
        stage="routing",
        what="the fast path is ragged_dot again",
        file="dsv3lab/model/grouped.py",
        old="return _blocked(*align(x, w, group_sizes)) if x.shape[0] else _reference(x, w.astype(x.dtype), group_sizes)",
        new="return jax.lax.ragged_dot(x, w, group_sizes)",
        gates=("routing_speed", "routing_memory"),
        also=("routing_balance", "routing_loss"),
        overrides=("profile.routing_steps=4",),
    ),
    Mutation(
        phase=1,
        stage="rope",
        what="half of the turn goes the other way",
        file="dsv3lab/model/rope.py",
        old="even * sin + odd * cos",
        new="odd * cos - even * sin",
        gates=("rope_error", "rope_relative"),
    ),
    Mutation(
        phase=1,
        stage="rope",
        what="YaRN interpolates the fast pairs and keeps the slow ones",
        file="dsv3lab/model/rope.py",
        old="frequencies / yarn.factor * ramp + frequencies * (1.0 - ramp)",
        new="frequencies / yarn.factor * (1.0 - ramp) + frequencies * ramp",
        gates=("rope_yarn", "rope_unseen"),
        also=("rope_error",),
    ),
    Mutation(
        phase=1,
        stage="rope",
        what="the softmax scale takes mscale once, not squared",
        file="dsv3lab/model/rope.py",
        old="yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2",
        new="yarn_mscale(yarn.factor, yarn.mscale_all_dim)",
        gates=("rope_scale",),
    ),
    Mutation(
        phase=1,
        stage="rope",
        what="a callback of somebody's debugging holds up every rotation",
        file="dsv3lab/model/rope.py",
        old="    return turned.reshape(x.shape).astype(x.dtype)",
        new='    __import__("jax").debug.callback(lambda _: __import__("time").sleep(2), x.ravel()[0])\n'
        "    return turned.reshape(x.shape).astype(x.dtype)",
        gates=("rope_throughput",),
    ),
    Mutation(
        phase=1,
        stage="mtp",
        what="the MTP module reads the halves of its input in the other order",
        file="dsv3lab/model/mtp.py",
        old="[self.embedding_norm(embedded), self.hidden_norm(hidden)]",
        new="[self.hidden_norm(hidden), self.embedding_norm(embedded)]",
        gates=("mtp_error",),
        also=("mtp_loss", "mtp_throughput"),
        overrides=("profile.mtp_steps=4",),
    ),
    Mutation(
        phase=1,
        stage="mtp",
        what="the MTP module reads the token that it is to predict",
        file="dsv3lab/model/mtp.py",
        old="shifted = jnp.concatenate([embedded[:, depth:], tail], axis=1)",
        new="shifted = jnp.concatenate([embedded[:, depth + 1 :], tail, tail[:, :1]], axis=1)",
        gates=("mtp_influence",),
        also=("mtp_error", "mtp_loss", "mtp_throughput"),
        overrides=("profile.mtp_steps=4",),
    ),
    Mutation(
        phase=1,
        stage="mtp",
        what="the MTP loss is a sum over the positions beside a mean",
        file="dsv3lab/train/losses.py",
        old="config.mtp_weight * mtp_mean",
        new="config.mtp_weight * windows.shape[1] * mtp_mean",
        gates=("mtp_loss",),
    ),
    Mutation(
        phase=1,
        stage="mtp",
        what="a callback of somebody's debugging holds up the MTP module",
        file="dsv3lab/model/mtp.py",
        old="            return module.norm(h), routed, captured",
        new='            jax.debug.callback(lambda _: __import__("time").sleep(1), h[0, 0, 0])\n'
        "            return module.norm(h), routed, captured",
        gates=("mtp_throughput",),
        also=("mtp_loss",),
        overrides=("profile.mtp_steps=4",),
    ),
    Mutation(
        phase=1,
        stage="fp8",
        what="a cast to E4M3 cuts off what lies between two numbers",
        file="dsv3lab/model/fp8.py",
        old="    return clipped.astype(jnp.float8_e4m3fn if",
        new="    clipped = jax.lax.bitcast_convert_type(\n"
        "        jax.lax.bitcast_convert_type(clipped, jnp.uint32) & jnp.uint32(0xFFF00000), jnp.float32\n"
        "    )\n"
        "    return clipped.astype(jnp.float8_e4m3fn if",
        gates=("fp8_casts",),
        also=("fp8_products", "fp8_loss"),
        overrides=FEW_FP8_STEPS,
    ),
    Mutation(
        phase=1,
        stage="fp8",
        what="the gradient of the weight is quantised along its other axis",
        file="dsv3lab/model/linear.py",
        old="dw = columns.T @ _round(dy, COLUMN, ",
        new="dw = columns.T @ _round(dy, ROW, ",
        gates=("fp8_products",),
        also=("fp8_loss",),
        overrides=FEW_FP8_STEPS,
    ),
    Mutation(
        phase=1,
        stage="fp8",
        what="nothing is promoted before the end of the sum",
        file="dsv3lab/model/accumulate.py",
        old="if promote is None else promote",
        new="if True else promote",
        gates=("fp8_promotion",),
        also=("fp8_loss",),
        overrides=FEW_FP8_STEPS,
    ),
    Mutation(
        phase=1,
        stage="fp8",
        what="a callback of somebody's debugging holds up every quantised layer",
        file="dsv3lab/model/linear.py",
        old="    rows = fp8.quantise(x, ROW, format=recipe.format, power_of_two=recipe.power_of_two)\n"
        "    weight = fp8.quantise(w, BLOCK)\n"
        "    y = fp8.dequantise(rows, ROW)",
        new='    jax.debug.callback(lambda _: __import__("time").sleep(0.5), x[0, 0])\n'
        "    rows = fp8.quantise(x, ROW, format=recipe.format, power_of_two=recipe.power_of_two)\n"
        "    weight = fp8.quantise(w, BLOCK)\n"
        "    y = fp8.dequantise(rows, ROW)",
        gates=("fp8_throughput",),
        also=("fp8_loss",),
        overrides=FEW_FP8_STEPS,
    ),
    Mutation(
        phase=2,
        stage="train",
        what="the optimizer climbs",
        file="dsv3lab/train/step.py",
        old="eqx.apply_updates(params, updates)",
        new="eqx.apply_updates(params, jax.tree.map(jnp.negative, updates))",
        gates=("train_bigram", "train_gzip_context", "train_gzip_document"),
        also=("train_finite", "train_dead_experts"),
    ),
    Mutation(
        phase=2,
        stage="train",
        what="the gradient norm of the third step is not a number",
        file="dsv3lab/train/step.py",
        old="grad_norm=norm, lr=rate)",
        new="grad_norm=jnp.where(state.step == 2, jnp.nan, norm), lr=rate)",
        gates=("train_finite",),
        also=LEARNING,
        overrides=(FEW_TOKENS,),
    ),
    Mutation(
        phase=2,
        stage="train",
        what="no token reaches the first expert",
        file="dsv3lab/model/routing.py",
        old="biased = scores if bias is None else scores + bias",
        new="biased = (scores + bias).at[..., 0].add(-99)",
        gates=("train_dead_experts",),
        also=LEARNING,
        overrides=(FEW_TOKENS,),
    ),
    Mutation(
        phase=2,
        stage="train",
        what="each batch takes two seconds to read",
        file="dsv3lab/train/loop.py",
        old="return jnp.asarray(self.dataset.batch_at(step, batch_size=self.ramp))",
        new="time.sleep(2)\n        return jnp.asarray(self.dataset.batch_at(step, batch_size=self.ramp))",
        gates=("train_throughput", "train_data_wait"),
        also=LEARNING,
        overrides=(FEW_TOKENS,),
    ),
    Mutation(
        phase=2,
        stage="resume",
        what="the data start again after a restart",
        file="dsv3lab/train/loop.py",
        old="self.dataset.batch_at(step, batch_size",
        new="self.dataset.batch_at(step - self.resumed_from, batch_size",
        gates=("resume_bitwise",),
    ),
    Mutation(
        phase=2,
        stage="resume",
        what="nobody is killed",
        file="dsv3lab/train/faults.py",
        old="(kill_when is not None and kill_when(directory))",
        new="False",
        gates=("resume_kills",),
    ),
    Mutation(
        phase=2,
        stage="resume",
        what="the manifest is not checked before a restore",
        file="dsv3lab/train/checkpoint.py",
        old="        verify(folder)\n    except CheckpointError",
        new="        pass\n    except CheckpointError",
        gates=("resume_damage",),
    ),
    Mutation(
        phase=2,
        stage="resume",
        what="a save takes ten seconds longer",
        file="dsv3lab/train/checkpoint.py",
        old="    temporary.mkdir()\n",
        new='    temporary.mkdir()\n    __import__("time").sleep(10)\n',
        gates=("resume_overhead",),
    ),
    Mutation(
        phase=2,
        stage="memory",
        what="the moments are kept in bfloat16, whatever is asked for",
        file="dsv3lab/train/optimizer.py",
        old='adam if options.moments == "float32" else kept_in_bfloat16(adam),',
        new="kept_in_bfloat16(adam),",
        gates=("memory_state",),
    ),
    Mutation(
        phase=2,
        stage="memory",
        what="the policies forget the first product of a feed-forward layer",
        file="dsv3lab/parallel/remat.py",
        old='*("ffn.gate_up", "ffn.down", ',
        new='*("ffn.down", ',
        gates=("memory_residuals",),
    ),
    Mutation(
        phase=2,
        stage="memory",
        what="recomputed units pass no gradient to their input",
        file="dsv3lab/parallel/remat.py",
        old="return jax.checkpoint(function, policy=policy)",
        new="function, inner = (lambda h, *rest: inner(jax.lax.stop_gradient(h), *rest)), function\n"
        "        return jax.checkpoint(function, policy=policy)",
        gates=("memory_gradient",),
        also=("memory_residuals",),
    ),
    Mutation(
        phase=2,
        stage="memory",
        what="every recomputed unit is given its input after three thousand idle rounds",
        file="dsv3lab/parallel/remat.py",
        old="return jax.checkpoint(function, policy=policy)",
        new="inner = function\n"
        "        function = lambda h, *rest: inner(  # noqa: E731\n"
        "            jax.lax.fori_loop(0, 3000, lambda _, x: x * 1.0000001, h), *rest\n"
        "        )\n"
        "        return jax.checkpoint(function, policy=policy)",
        gates=("memory_recompute_cost",),
        also=("memory_residuals", "memory_gradient"),
    ),
    Mutation(
        phase=2,
        stage="schedule",
        what="the cosine ends too high",
        file="dsv3lab/train/optimizer.py",
        old="(shape.peak_lr - shape.final_lr) * 0.5 * (1 + jnp.cos(math.pi * along))",
        new="(shape.peak_lr - shape.final_lr) * 0.5 * (1.2 + 0.8 * jnp.cos(math.pi * along))",
        gates=("schedule_corners",),
    ),
    Mutation(
        phase=2,
        stage="schedule",
        what="the first window is passed over",
        file="dsv3lab/config/ramp.py",
        old="pieces.append(Piece(step, window, steps, batch_size))",
        new="pieces.append(Piece(step, window + 1, steps, batch_size))",
        gates=("schedule_windows",),
    ),
    Mutation(
        phase=2,
        stage="schedule",
        what="the learning rate takes the ramp for the beginning of the warm-up",
        file="dsv3lab/train/optimizer.py",
        old="* (piece.batch_size / windows)",
        new="* (0.001 * piece.batch_size / windows)",
        gates=("schedule_loss",),
        also=("schedule_corners",),
    ),
    Mutation(
        phase=3,
        stage="data_parallel",
        what="gradients are added instead of averaged",
        file="dsv3lab/parallel/data.py",
        old="lambda leaf: jax.lax.pmean(leaf, axis)",
        new="lambda leaf: jax.lax.psum(leaf, axis)",
        gates=("dp_gradient",),
        also=("dp_loads", "dp_bias"),
    ),
    Mutation(
        phase=3,
        stage="data_parallel",
        what="one collective is superfluous",
        file="dsv3lab/parallel/data.py",
        old="lambda leaf: jax.lax.pmean(leaf, axis)",
        new="lambda leaf: jax.lax.pmean(leaf, axis) + 0 * jax.lax.pmax(leaf, axis)",
        gates=("dp_bytes",),
    ),
    Mutation(
        phase=3,
        stage="data_parallel",
        what="the loads of the busiest device stand for all",
        file="dsv3lab/parallel/data.py",
        old="lambda leaf: jax.lax.psum(leaf, axis), tree)",
        new="lambda leaf: jax.lax.pmax(leaf, axis), tree)",
        gates=("dp_loads", "dp_bias"),
        also=("dp_bytes",),
    ),
    Mutation(
        phase=3,
        stage="data_parallel",
        what="every step waits five seconds for a device",
        file="dsv3lab/parallel/data.py",
        old="        # Without its final place, the first call",
        new='        __import__("time").sleep(5)\n        # Without its final place, the first call',
        gates=("dp_throughput", "dp_scaling"),
        overrides=SCALING_HERE,
    ),
    Mutation(
        phase=4,
        stage="restore",
        what="the head is restored nine times too large, with the wrong sign",
        file="dsv3lab/train/checkpoint.py",
        old='    return _restore_tree(folder / "model", abstract(config))',
        new='    model = _restore_tree(folder / "model", abstract(config))\n'
        '    return __import__("equinox").tree_at(lambda m: m.head, model, -9 * model.head)',
        gates=("restore_equal", "restore_bits"),
        overrides=(SOME_TOKENS,),
    ),
    Mutation(
        phase=4,
        stage="restore",
        what="the next token is read one place too early",
        file="dsv3lab/infer/generate.py",
        old="hidden[rows, lengths - 1]",
        new="hidden[rows, lengths - 2]",
        gates=("restore_generate",),
        overrides=(SOME_TOKENS,),
    ),
    Mutation(
        phase=4,
        stage="restore",
        what="a callback of somebody's debugging holds up every forward pass",
        file="dsv3lab/model/deepseek.py",
        old="        hidden = self.norm(h)\n",
        new="        hidden = self.norm(h)\n"
        '        jax.debug.callback(lambda _: __import__("time").sleep(0.5), h[0, 0, 0])\n',
        gates=("restore_throughput",),
        overrides=(SOME_TOKENS,),
    ),
)
