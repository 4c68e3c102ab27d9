"""The network: parameters and mathematics, without I/O, sharding or collectives."""

from dsv3lab.model.attention import MLA as MLA
from dsv3lab.model.attention import attend as attend
from dsv3lab.model.block import Block as Block
from dsv3lab.model.block import Stack as Stack
from dsv3lab.model.deepseek import DeepSeek as DeepSeek
from dsv3lab.model.deepseek import Output as Output
from dsv3lab.model.deepseek import abstract as abstract
from dsv3lab.model.deepseek import init as init
from dsv3lab.model.deepseek import trainable as trainable
from dsv3lab.model.exchange import local_exchange as local_exchange
from dsv3lab.model.execution import COUNTABLE as COUNTABLE
from dsv3lab.model.execution import LOCAL as LOCAL
from dsv3lab.model.execution import Execution as Execution
from dsv3lab.model.experts import Experts as Experts
from dsv3lab.model.experts import MoE as MoE
from dsv3lab.model.grouped import grouped_matmul as grouped_matmul
from dsv3lab.model.layers import RMSNorm as RMSNorm
from dsv3lab.model.layers import SwiGLU as SwiGLU
from dsv3lab.model.linear import fp8_grouped_matmul as fp8_grouped_matmul
from dsv3lab.model.linear import fp8_matmul as fp8_matmul
from dsv3lab.model.mtp import MTP as MTP
from dsv3lab.model.routing import Auxiliary as Auxiliary
from dsv3lab.model.routing import Router as Router
from dsv3lab.model.routing import auxiliary_losses as auxiliary_losses
from dsv3lab.model.routing import balance_loss as balance_loss
from dsv3lab.model.varying import align as align
