"""The defects, one at a time: what is replaced where, which gates must fail, and which others may.

Each replaces a text that stands exactly once in its file. Sizes are those of the default profile, at which the code as
it is passes every gate; where a run is made shorter, gates on learning are listed under `also`.
"""

from dataclasses import dataclass

LEARNING = ("train_bigram", "train_gzip_context", "train_gzip_document", "train_dead_experts")
FEW_TOKENS, SOME_TOKENS = "train.tokens=24576", "train.tokens=409600"

MUSEUM_SHORT = ("profile.museum_steps=1", "profile.museum_lessons=0")


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
        stage="museum",
        what="SwiGLU has another nonlinearity",
        file="dsv3lab/model/layers.py",
        old="return jax.nn.silu(gate) * up",
        new="return jax.nn.gelu(gate) * up",
        gates=("museum_error",),
        overrides=MUSEUM_SHORT,
    ),
    Mutation(
        phase=1,
        stage="museum",
        what="the mistakes are not put in",
        file="dsv3lab/museum/patched.py",
        old="text = text.replace(right, wrong)",
        new="text = text.replace(right, right)",
        gates=("museum_visible",),
        overrides=MUSEUM_SHORT,
    ),
    Mutation(
        phase=1,
        stage="museum",
        what="a callback of somebody's debugging holds up every forward pass",
        file="dsv3lab/model/mtp.py",
        old="    batch, seq, width = embedded.shape\n",
        new="    batch, seq, width = embedded.shape\n"
        '    jax.debug.callback(lambda _: __import__("time").sleep(2), embedded[0, 0, 0])\n',
        gates=("museum_throughput",),
        overrides=MUSEUM_SHORT,
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
        old="return jnp.asarray(self.dataset.batch_at(step, batch_size=self.train.batch_size))",
        new="time.sleep(2)\n        return jnp.asarray(self.dataset.batch_at(step, batch_size=self.train.batch_size))",
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
        gates=("dp_throughput",),
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
