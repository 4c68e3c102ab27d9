"""Tiny configurations and a dataset made of numbers, for tests of rooms that need them but do not test them."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from dsv3lab import config as configs
from dsv3lab.config.data import TokenizerConfig
from dsv3lab.config.train import (
    CheckpointConfig,
    DropoutConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    StabilityConfig,
)
from dsv3lab.config.workbook import ProfileConfig, SeedConfig, TrackingConfig

SEQUENCE_LENGTH = 12


def model_config(**changes: Any) -> configs.ModelConfig:
    """A model with every part of DeepSeek-V3 in under ten thousand parameters."""
    tiny = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 2,
        "topk_group": 1,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "embedding_initializer_range": 0.2,
    }
    return configs.config("nano", **(tiny | changes))


def loss_config(**changes: Any) -> LossConfig:
    """The objective with MTP, the sequence-wise balance loss and the bias update, and no other paper's losses."""
    tiny = LossConfig(
        mtp_weight=0.3,
        balance_alpha=1e-2,
        switch_alpha=0.0,
        expert_alpha=0.0,
        device_alpha=0.0,
        communication_alpha=0.0,
        bias_update_speed=1e-2,
        vocab_chunk=16,
    )
    return replace(tiny, **changes)


def train_config(**changes: Any) -> configs.TrainConfig:
    """Six steps of four sequences in two micro-batches, a checkpoint every second step."""
    tiny = configs.TrainConfig(
        seed=0,
        tokens=6 * 4 * SEQUENCE_LENGTH,
        batch_size=4,
        batch_ramp=None,
        micro_batch=2,
        optimizer=OptimizerConfig(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0, moments="float32"),
        schedule=ScheduleConfig(
            peak_lr=1e-2, final_lr=1e-3, tail_lr=1e-4, warmup=0.2, constant=0.5, cosine=0.8, tail=0.9, changes=()
        ),
        loss=loss_config(),
        dropout=DropoutConfig(residual=0.0, attention=0.0),
        stability=StabilityConfig(skipped_in_a_row=3, spike_factor=1.5, spike_window=3),
        checkpoint=CheckpointConfig(interval=2, keep=2),
        log_interval=1,
        eval_interval=3,
        eval_windows=4,
        remat="none",
        scan_layers=True,
    )
    return replace(tiny, **changes)


def run_config(
    *, model: configs.ModelConfig | None = None, train: configs.TrainConfig | None = None
) -> configs.RunConfig:
    """A whole run around a tiny model and training."""
    model = model or model_config()
    domain = configs.DomainConfig(weight=1.0, kind="source", packages=("x",), validation=("y",), max_bytes=1000)
    seed = SeedConfig(weeks="", infrastructure=(), resources={}, targets=(), criteria=(), ref="")
    return configs.RunConfig(
        model=model,
        data=configs.DataConfig(
            name="tiny",
            sequence_length=SEQUENCE_LENGTH,
            min_document_bytes=1,
            max_document_bytes=100_000,
            shuffle_seed=0,
            tokenizer=TokenizerConfig(vocab_size=model.vocab_size, train_bytes=1000),
            domains={"prose": domain, "code": replace(domain, weight=3.0)},
        ),
        train=train or train_config(),
        eval=configs.EvalConfig(every=2, batch_size=2),
        study=configs.StudyConfig(
            moe_layers=2,
            moe_experts=4,
            moe_top=2,
            moe_split=2,
            moe_shared=1,
            moe_batch_size=4,
            balance_alpha=0.01,
            switch_alpha=0.01,
            bias_update_speed=0.03,
            bias_scale=0.05,
            checked_tokens=8,
            layer_width=16,
            layer_inner=16,
            layer_experts=4,
            layer_top=2,
            mtp_layers=2,
            mtp_batch_size=2,
            mtp_windows=1,
            memory_sequences=2,
            ramp=configs.BatchRampConfig(start=2, until=0.5, stairs=1),
            fp8=configs.Fp8StudyConfig(
                layers=1,
                heads=1,
                hidden_size=128,
                inner_size=128,
                head_width=128,
                batch_size=1,
                peak_lr=2e-3,
                seeds=2,
                length=128,
            ),
            stability_layers=2,
            stability_width=8,
            stability_batch_size=2,
            stability_length=8,
            routing_windows=8,
            usd_per_device_hour=2.0,
            failure_device_hours=50_700.0,
            failure_devices=64,
        ),
        precision=configs.PrecisionConfig(products="float32", activations="float32"),
        parallel=configs.ParallelConfig(data=1, simulated=True),
        profile=ProfileConfig(
            name="test",
            promotes=False,
            device="any",
            bench_repeats=1,
            slow_repeats=1,
            memory_policies=("none", "full"),
            schedule_tokens=96,
            stream_tokens=1,
            time_factors={},
            bench_tokens=128,
            moe_steps=1,
            moe_seeds=1,
            mtp_steps=2,
            museum_steps=1,
            museum_programs=0,
            fp8_steps=2,
            resume_steps=4,
            parallel_steps=1,
            stability_steps=10,
            generate_tokens=1,
        ),
        tracking=TrackingConfig(enabled=False, experiment="test", flush_s=1.0, also=()),
        debug=False,
        phase=configs.PhaseConfig(number=1, title="", question="", requires_phase=None, stages={}, gates={}, seed=seed),
    )


@dataclass(frozen=True)
class FakeDataset:
    """Windows that count upwards from a random start, so that a tiny model can learn something; a pure function."""

    digest: str = "fake"
    sequence_length: int = SEQUENCE_LENGTH
    vocab_size: int = 64
    domains: tuple[str, ...] = ("prose", "code")

    def batch_at(self, step: int, *, batch_size: int | configs.Ramp) -> np.ndarray:
        batch_size = batch_size if isinstance(batch_size, int) else batch_size.batch_size(step)
        rng = np.random.default_rng([7, step])
        start = rng.integers(self.vocab_size, size=(batch_size, 1))
        return ((start + np.arange(self.sequence_length + 1)) % self.vocab_size).astype(np.int32)

    def validation(self, domain: str) -> SimpleNamespace:
        return SimpleNamespace(windows=self.batch_at(10**6 + len(domain), batch_size=5))


def random_model(config: configs.ModelConfig, *, seed: int = 0) -> Any:
    """A model whose weights NumPy draws: compiling `dl.init` takes longer than most tests."""
    import jax

    from dsv3lab.model import abstract

    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.endswith(".bias"):
            values = np.zeros(leaf.shape)
        elif name.endswith("norm.weight"):
            values = np.ones(leaf.shape)
        else:
            values = rng.normal(scale=config.initializer_range, size=leaf.shape)
        return jax.numpy.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, abstract(config))
