"""The planner: what a configuration costs, in closed form and without JAX."""

from dsv3lab.plan.cost import uptime as uptime
from dsv3lab.plan.cost import usd_per_million_tokens as usd_per_million_tokens
from dsv3lab.plan.count import Parameters as Parameters
from dsv3lab.plan.count import attention_parameters as attention_parameters
from dsv3lab.plan.count import expert_parameters as expert_parameters
from dsv3lab.plan.count import flops_by_part as flops_by_part
from dsv3lab.plan.count import flops_per_token as flops_per_token
from dsv3lab.plan.count import kv_bytes_per_token as kv_bytes_per_token
from dsv3lab.plan.count import kv_bytes_per_token_gqa as kv_bytes_per_token_gqa
from dsv3lab.plan.count import kv_bytes_per_token_mha as kv_bytes_per_token_mha
from dsv3lab.plan.count import moe_layer_parameters as moe_layer_parameters
from dsv3lab.plan.count import parameters as parameters
from dsv3lab.plan.granularity import expert_sets as expert_sets
from dsv3lab.plan.granularity import granularities as granularities
from dsv3lab.plan.memory import batch_bytes as batch_bytes
from dsv3lab.plan.memory import metrics_bytes as metrics_bytes
from dsv3lab.plan.memory import residual_bytes as residual_bytes
from dsv3lab.plan.memory import state_bytes as state_bytes
from dsv3lab.plan.shapes import Tensor as Tensor
from dsv3lab.plan.shapes import tensors as tensors
