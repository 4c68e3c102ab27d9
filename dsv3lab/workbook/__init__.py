"""Stages, gates, records, promotions and the runner: what makes notebooks evidence. Never imports JAX."""

from dsv3lab.workbook.chain import Promotion as Promotion
from dsv3lab.workbook.clearance import last_values as last_values
from dsv3lab.workbook.clearance import launch_record as launch_record
from dsv3lab.workbook.gates import Device as Device
from dsv3lab.workbook.gates import GateResult as GateResult
from dsv3lab.workbook.gates import Point as Point
from dsv3lab.workbook.gates import read_points as read_points
from dsv3lab.workbook.promotion import UpstreamError as UpstreamError
from dsv3lab.workbook.record import PhaseRecord as PhaseRecord
from dsv3lab.workbook.record import StageOutcome as StageOutcome
from dsv3lab.workbook.record import Upstream as Upstream
from dsv3lab.workbook.stage import Stage as Stage
from dsv3lab.workbook.waivers import Waiver as Waiver
