"""How a model is trained: budget, batch, optimizer, schedule, losses, checkpoints (DeepSeek-V3 report 4.2)."""

from dataclasses import dataclass, replace
from typing import Literal

from dsv3lab.config.build import ConfigError, within
from dsv3lab.config.ramp import Ramp, exact


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a decay mask and global-norm clipping."""

    b1: float = within(0.0, 1.0, doc="first-moment decay [report 4.2]")
    b2: float = within(0.0, 1.0, doc="second-moment decay [report 4.2]")
    eps: float = within(0.0, doc="Adam epsilon (not published; chosen)")
    weight_decay: float = within(0.0, doc="decoupled decay, on matrices only [report 4.2]")
    clip_norm: float = within(0.0, doc="largest global gradient norm [report 4.2]")
    moments: Literal["float32", "bfloat16"]
    """How both moments are kept between steps (bfloat16 in the report, 3.3.3) [report 3.3.3]."""


@dataclass(frozen=True, kw_only=True)
class ChangeConfig:
    """A weight of `LossConfig` that has another value from somewhere in the run on (report, 4.2)."""

    after: float = within(0.0, 1.0, unit="of the budget", doc="where the value begins to hold")
    name: Literal["mtp_weight", "bias_update_speed"]
    """Which weight."""
    value: float = within(0.0, doc="the new value, until the next change")


@dataclass(frozen=True, kw_only=True)
class BatchRampConfig:
    """A batch that grows to `train.batch_size` in equal stairs over equal numbers of tokens.

    The report says from where to where (3072 to 15360 sequences in the first 469B tokens), not in which shape.
    """

    start: int = within(1, unit="sequences", doc="sequences in the first step")
    until: float = within(0.0, 1.0, unit="of the budget", doc="where the whole batch size begins to hold")
    stairs: int = within(1, doc="batch sizes below the whole one")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up, constant, cosine, constant: the shape of the report's schedule, in fractions of the budget."""

    peak_lr: float = within(0.0, doc="learning rate after warm-up [report 4.2]")
    final_lr: float = within(0.0, doc="learning rate at the end of the cosine [report 4.2]")
    tail_lr: float = within(0.0, doc="learning rate of the last constant stretch [report 4.2]")
    warmup: float = within(0.0, 1.0, unit="of the budget", doc="end of the linear warm-up [report 4.2]")
    constant: float = within(
        0.0, 1.0, unit="of the budget", doc="end of the constant stretch, start of the cosine [report 4.2]"
    )
    cosine: float = within(0.0, 1.0, unit="of the budget", doc="end of the cosine, start of final_lr [report 4.2]")
    tail: float = within(0.0, 1.0, unit="of the budget", doc="start of tail_lr [report 4.2]")
    changes: tuple[ChangeConfig, ...]
    """Weights of the loss that change on the way, in the order in which they do [report 4.2]."""

    def __post_init__(self) -> None:
        if not self.warmup <= self.constant <= self.cosine <= self.tail:
            raise ConfigError("schedule: warmup <= constant <= cosine <= tail must hold")
        if list(self.changes) != sorted(self.changes, key=lambda change: change.after):
            raise ConfigError("changes: they must stand in the order of `after`")

    def with_peak(self, peak_lr: float) -> "ScheduleConfig":
        """The same shape below another peak; of a schedule that is 0 throughout only the peak rises."""
        factor = peak_lr / self.peak_lr if self.peak_lr else 0.0
        return replace(self, peak_lr=peak_lr, final_lr=self.final_lr * factor, tail_lr=self.tail_lr * factor)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms beside the next-token loss, and how the vocabulary loss is chunked."""

    mtp_weight: float = within(0.0, doc="lambda of Eq. 25 [report 2.2, Eq. 25, 4.2]")
    balance_alpha: float = within(
        0.0, doc="alpha of the sequence-wise balance loss, Eq. 17 [report 2.1.2, Eq. 17, 4.2]"
    )
    switch_alpha: float = within(
        0.0,
        doc="weight of the Switch loss (arXiv:2101.03961) over the sequences that one device computes in one pass; "
        "several micro-batches or devices give the mean of theirs, which is another objective",
    )
    expert_alpha: float = within(0.0, doc="alpha_1 of V2's expert-level loss (V2 report, Eq. 23)")
    device_alpha: float = within(0.0, doc="alpha_2 of V2's device-level loss (Eq. 26)")
    communication_alpha: float = within(0.0, doc="alpha_3 of V2's communication loss (Eq. 29)")
    bias_update_speed: float = within(0.0, doc="gamma of the router-bias update, 2.1.2 [report 2.1.2, 4.2]")
    vocab_chunk: int = within(1, unit="tokens", doc="tokens whose logits exist at once")


@dataclass(frozen=True, kw_only=True)
class DropoutConfig:
    """What is dropped at random in training; the report drops nothing."""

    residual: float = within(0.0, 0.999, doc="rate in what a sub-layer adds to the residual stream")
    attention: float = within(0.0, 0.999, doc="rate in the heads' mixed values, before their output projection")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    interval: int = within(1, unit="steps", doc="steps between checkpoints")
    keep: int = within(1, doc="newest checkpoints kept")


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """What is done about steps whose numbers break, and which loss counts as a spike."""

    skipped_in_a_row: int = within(1, unit="steps", doc="steps in a row without a finite gradient that end the run")
    spike_factor: float = within(1.0, doc="a loss above so many times the running median is counted as a spike")
    spike_window: int = within(1, unit="reports", doc="reported losses behind the running median")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, ended by a token budget and never by a clock."""

    seed: int = within(0, doc="seed of the initialisation")
    tokens: int = within(1, unit="tokens", doc="budget: targets of the next-token loss [report 4.2]")
    batch_size: int = within(1, unit="sequences", doc="sequences in one optimizer step [report 4.2]")
    batch_ramp: BatchRampConfig | None
    """How the batch grows to `batch_size`; null: it has this size from the first step on [report 4.2]."""
    micro_batch: int | Literal["auto"] | None = within(
        1, unit="sequences", doc="sequences whose gradient a device takes at once; null: all, auto: as many as fit"
    )
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    dropout: DropoutConfig
    stability: StabilityConfig
    checkpoint: CheckpointConfig
    log_interval: int = within(1, unit="steps", doc="steps between progress lines and metric points")
    eval_interval: int = within(1, unit="steps", doc="steps between validation perplexities")
    eval_windows: int = within(1, unit="windows", doc="validation windows used at the interval")
    remat: Literal["none", "full", "products", "report"]
    """What of each unit of blocks is kept for the backward pass: everything, its input only, the outputs of products, or
    these without the up-projections of MLA, as in the report (3.2.3) [report 3.2.3]."""
    scan_layers: bool
    """Whether the layers of a stack run in one compiled loop; unrolled, they compile longer and may run faster."""

    def __post_init__(self) -> None:
        ramp = self.batch_ramp
        if ramp and (ramp.start >= self.batch_size or (self.batch_size - ramp.start) % ramp.stairs):
            raise ConfigError(
                f"batch_ramp: from {ramp.start} to {self.batch_size} sequences there are no {ramp.stairs} equal stairs "
                "upwards; choose a divisor of the difference"
            )
        for size in self.batch_sizes:
            self.micro_batches(size)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sequences of a step: those of the ramp, the whole batch last."""
        if self.batch_ramp is None:
            return (self.batch_size,)
        start, stairs = self.batch_ramp.start, self.batch_ramp.stairs
        return tuple(start + (self.batch_size - start) * stair // stairs for stair in range(stairs + 1))

    def micro_batches(self, sequences: int) -> int:
        """Equal parts in which a device takes the gradient of its `sequences`, one after the other.

        Fewer sequences than `micro_batch` are one part. So they are under "auto", for which `train.fit` alone looks.
        """
        size = self.micro_batch if isinstance(self.micro_batch, int) else sequences
        if sequences > size and sequences % size:
            raise ConfigError(
                f"micro_batch: {sequences} sequences on one device do not split into parts of {size}; choose a divisor"
            )
        return max(1, sequences // size)

    def ramp(self, sequence_length: int) -> Ramp:
        """The batch of each step of the run, and where in the data it stands."""
        *grown, whole = self.batch_sizes
        until = exact(self.batch_ramp.until) if self.batch_ramp else exact(0.0)
        corners = [(until * (stair + 1) / len(grown), size) for stair, size in enumerate(grown)]
        return Ramp.of([*corners, (exact(1.0), whole)], tokens=self.tokens, sequence_length=sequence_length)

    def steps(self, sequence_length: int) -> int:
        """Optimizer steps that spend the token budget, the last one rounded up to a whole batch."""
        return self.ramp(sequence_length).steps


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What the final evaluation covers."""

    every: int = within(1, unit="documents", doc="one held-out document of so many, by package and size")
    batch_size: int = within(1, unit="windows", doc="windows evaluated at once")


@dataclass(frozen=True, kw_only=True)
class Fp8StudyConfig:
    """The model that is trained in several number formats; every side of its matrices is a multiple of an FP8 tile."""

    layers: int = within(1, doc="its layers, all with experts")
    heads: int = within(1, doc="its attention heads")
    hidden_size: int = within(128, doc="its width")
    inner_size: int = within(128, doc="inner width of each expert, and of the queries' latent and the keys' latent")
    head_width: int = within(2, doc="width of a head's queries, keys and values, with and without rotation")
    batch_size: int = within(1, unit="sequences", doc="batch of each training")
    peak_lr: float = within(0.0, doc="learning rate after warm-up; the schedule keeps the shape of train.schedule")
    seeds: int = within(
        2, doc="bfloat16 trainings from different weights, whose spread the difference is compared with"
    )
    length: int = within(128, unit="products", doc="longest sum whose accumulation is emulated [report 3.3.2]")

    def __post_init__(self) -> None:
        for name in ("hidden_size", "inner_size"):
            if getattr(self, name) % 128:
                raise ConfigError(f"{name}: {getattr(self, name)} is not a multiple of 128, the side of an FP8 tile")
        if self.heads * self.head_width % 128:
            raise ConfigError(f"head_width: {self.heads} heads of {self.head_width} do not fill FP8 tiles of 128")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is looked at on its own: expert layouts, balance, an expert layer, MTP, FP8, memory, stability, routing and cost."""

    moe_layers: int = within(1, doc="layers of the models of the DeepSeekMoE notebook, all of them with experts")
    moe_experts: int = within(1, doc="coarse experts of their MoE layers [arXiv:2401.06066, 3.1]")
    moe_top: int = within(1, doc="coarse experts of each token [arXiv:2401.06066, 3.1]")
    moe_split: int = within(1, doc="fine-grained experts that a coarse one is split into, m [arXiv:2401.06066, 3.1]")
    moe_shared: int = within(1, doc="fine-grained experts that serve every token, K_s [arXiv:2401.06066, 3.2]")
    moe_batch_size: int = within(1, unit="sequences", doc="batch of their short trainings")
    balance_alpha: float = within(0.0, doc="alpha of the method with the sequence-wise loss [report 2.1.2, Eq. 17]")
    switch_alpha: float = within(0.0, doc="alpha of the method with the Switch loss [arXiv:2101.03961, 2.2]")
    bias_update_speed: float = within(0.0, doc="gamma of the method with the bias update [report 2.1.2]")
    bias_scale: float = within(0.0, doc="standard deviation of the random biases under which the selection is checked")
    checked_tokens: int = within(1, unit="tokens", doc="tokens whose experts are computed a second time, in NumPy")
    layer_width: int = within(1, doc="hidden size of the expert layer that is timed")
    layer_inner: int = within(1, doc="inner width of each of its experts")
    layer_experts: int = within(1, doc="its routed experts")
    layer_top: int = within(1, doc="experts of each token")
    mtp_layers: int = within(1, doc="main layers of the model that is trained with MTP and without")
    mtp_batch_size: int = within(1, unit="sequences", doc="batch of each of the two")
    mtp_windows: int = within(1, unit="windows", doc="held-out windows of each domain whose second tokens are drafted")
    memory_sequences: int = within(1, unit="sequences", doc="sequences of the gradients whose memory is compared")
    ramp: BatchRampConfig
    """The growing batch that phase 2 compares with a constant one."""
    fp8: Fp8StudyConfig
    stability_layers: int = within(2, doc="layers of the model of the stability run")
    stability_width: int = within(8, doc="its hidden size; heads, ranks and inner widths shrink alike")
    stability_batch_size: int = within(1, unit="sequences", doc="its batch")
    stability_length: int = within(2, unit="tokens", doc="targets of each of its windows, which are cut to that")
    routing_windows: int = within(8, unit="windows", doc="held-out windows whose experts are compared in phase 3")
    usd_per_device_hour: float = within(0.0, unit="USD", doc="price of a device for an hour [report, Table 1]")
    failure_device_hours: float = within(
        1e-3, unit="device-hours", doc="mean time between failures of one device [arXiv:2407.21783, 3.3.4]"
    )
    failure_devices: int = within(1, unit="devices", doc="devices for which uptime is reckoned, any of which may fail")


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number formats of the computation (DeepSeek-V3 report 3.3); master weights and gradients are float32 in all."""

    products: Literal["float32", "bfloat16", "fp8"]
    """Of the linear layers. FP8 is emulated: block-scaled E4M3 values, sums in float32 [report 3.3]."""
    activations: Literal["float32", "bfloat16"]
    """Of everything between them [report 3.3]."""

    def __post_init__(self) -> None:
        if self.products != "fp8" and self.products != self.activations:
            raise ConfigError(
                f"activations: {self.activations} does not go with products in {self.products}; make them the same"
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The device mesh."""

    data: int = within(1, unit="devices", doc="data-parallel ways [report 3.2]")
    simulated: bool
    """Whether the devices are simulated on the CPU."""
