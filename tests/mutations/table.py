"""The defects. Each is a replacement of a text that stands exactly once in its file; the gates that it must fail follow.

The mutations of one run are applied together, so that a stage is executed once. Sizes are those of the default profile:
at the sizes of the short one, gates on speed and on learning fail without any defect.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A defect: what it is, where, and which gates see it."""

    what: str
    file: str
    old: str
    new: str
    gates: tuple[str, ...]


@dataclass(frozen=True)
class MutatedRun:
    """One execution of one stage with all its mutations."""

    phase: int
    stage: str
    mutations: tuple[Mutation, ...]
    overrides: tuple[str, ...] = ()


RUNS = {
    "mla": MutatedRun(
        phase=1,
        stage="mla",
        mutations=(
            Mutation(
                "the latent is expanded without its norm",
                "dsv3lab/model/attention.py",
                "matmul(self.latent_norm(latent), self.latent_up)",
                "matmul(latent, self.latent_up)",
                ("mla_error",),
            ),
            Mutation(
                "each query sees one key too many",
                "dsv3lab/model/causal.py",
                "[:, None] >= jnp.arange(keys)",
                "[:, None] >= jnp.arange(keys) - 1",
                ("mla_causality",),
            ),
            Mutation(
                "the cache forgets the rotary key",
                "dsv3lab/plan/count.py",
                "(config.kv_lora_rank + config.qk_rope_head_dim) * bytes_per_element",
                "config.kv_lora_rank * bytes_per_element",
                ("mla_cache_v3",),
            ),
            Mutation(
                "attention in blocks of two queries",
                "dsv3lab/model/causal.py",
                "BLOCK, MOST_BLOCKS = 64, 16",
                "BLOCK, MOST_BLOCKS = 2, 128",
                ("mla_throughput",),
            ),
        ),
    ),
    "routing": MutatedRun(
        phase=1,
        stage="routing",
        mutations=(
            Mutation(
                "the bias leaks into the gates",
                "dsv3lab/model/routing.py",
                "return ids, gate_weights(scores, ids, scale=self.scale)",
                "return ids, gate_weights(scores + self.bias, ids, scale=self.scale)",
                ("routing_error",),
            ),
            Mutation(
                "a group is as good as its best expert",
                "dsv3lab/model/routing.py",
                "jax.lax.top_k(grouped, 2)",
                "jax.lax.top_k(grouped, 1)",
                ("routing_choice",),
            ),
            Mutation(
                "the bias moves a hundred times too far, and the wrong way",
                "dsv3lab/train/step.py",
                "return bias + speed * direction",
                "return bias - 100 * speed * direction",
                ("routing_balance", "routing_loss"),
            ),
            Mutation(
                "the fast path is ragged_dot again",
                "dsv3lab/model/grouped.py",
                "return _blocked(*align(x, w, group_sizes)) if x.shape[0] else _reference(x, w, group_sizes)",
                "return jax.lax.ragged_dot(x, w, group_sizes)",
                ("routing_speed", "routing_memory"),
            ),
        ),
    ),
    "train": MutatedRun(
        phase=2,
        stage="train",
        mutations=(
            Mutation(
                "the optimizer climbs",
                "dsv3lab/train/step.py",
                "eqx.combine(eqx.apply_updates(params, updates), rest)",
                "eqx.combine(eqx.apply_updates(params, jax.tree.map(jnp.negative, updates)), rest)",
                ("train_bigram", "train_gzip_context", "train_gzip_document"),
            ),
            Mutation(
                "the reported loss is divided by zero",
                "dsv3lab/train/metrics.py",
                '"loss": parts.main,',
                '"loss": parts.main / 0,',
                ("train_finite",),
            ),
            Mutation(
                "no token reaches the first expert",
                "dsv3lab/model/routing.py",
                "biased = scores + bias",
                "biased = (scores + bias).at[..., 0].add(-99)",
                ("train_dead_experts",),
            ),
        ),
    ),
    "train_speed": MutatedRun(
        phase=2,
        stage="train",
        mutations=(
            Mutation(
                "each batch takes two seconds to read",
                "dsv3lab/train/loop.py",
                "return jnp.asarray(self.dataset.batch_at(step, batch_size=self.train.batch_size))",
                "time.sleep(2)\n        return jnp.asarray(self.dataset.batch_at(step, batch_size=self.train.batch_size))",
                ("train_throughput", "train_data_wait"),
            ),
        ),
        overrides=("train.tokens=24576",),
    ),
    "resume": MutatedRun(
        phase=2,
        stage="resume",
        mutations=(
            Mutation(
                "the data start again after a restart",
                "dsv3lab/train/loop.py",
                "self.dataset.batch_at(step, batch_size",
                "self.dataset.batch_at(step - self.resumed_from, batch_size",
                ("resume_bitwise",),
            ),
            Mutation(
                "the manifest is not checked before a restore",
                "dsv3lab/train/checkpoint.py",
                "        verify(folder)\n    except CheckpointError",
                "        pass\n    except CheckpointError",
                ("resume_damage",),
            ),
            Mutation(
                "a save takes ten seconds longer",
                "dsv3lab/train/checkpoint.py",
                "    temporary.mkdir()\n",
                '    temporary.mkdir()\n    __import__("time").sleep(10)\n',
                ("resume_overhead",),
            ),
        ),
    ),
    "data_parallel": MutatedRun(
        phase=3,
        stage="data_parallel",
        mutations=(
            Mutation(
                "gradients are added instead of averaged, and one collective is superfluous",
                "dsv3lab/parallel/data.py",
                "lambda leaf: jax.lax.pmean(leaf, axis)",
                "lambda leaf: jax.lax.psum(leaf, axis) + 0 * jax.lax.pmean(leaf, axis)",
                ("dp_gradient", "dp_bytes"),
            ),
            Mutation(
                "the loads of the busiest device stand for all",
                "dsv3lab/parallel/data.py",
                "lambda leaf: jax.lax.psum(leaf, axis), tree)",
                "lambda leaf: jax.lax.pmax(leaf, axis), tree)",
                ("dp_loads", "dp_bias"),
            ),
            Mutation(
                "every step waits five seconds for a device",
                "dsv3lab/parallel/data.py",
                "        # Without its final place, the first call",
                '        __import__("time").sleep(5)\n        # Without its final place, the first call',
                ("dp_throughput",),
            ),
        ),
    ),
    "restore": MutatedRun(
        phase=4,
        stage="restore",
        mutations=(
            Mutation(
                "the head is restored with the wrong sign",
                "dsv3lab/train/checkpoint.py",
                '    return _restore_tree(folder / "model", abstract(config))',
                '    model = _restore_tree(folder / "model", abstract(config))\n'
                '    return __import__("equinox").tree_at(lambda m: m.head, model, -9 * model.head)',
                ("restore_equal", "restore_bits"),
            ),
            Mutation(
                "the next token is read one place too early",
                "dsv3lab/infer/generate.py",
                "hidden[rows, lengths - 1]",
                "hidden[rows, lengths - 2]",
                ("restore_generate",),
            ),
            Mutation(
                "attention in blocks of two queries",
                "dsv3lab/model/causal.py",
                "BLOCK, MOST_BLOCKS = 64, 16",
                "BLOCK, MOST_BLOCKS = 2, 128",
                ("restore_throughput",),
            ),
        ),
    ),
}
