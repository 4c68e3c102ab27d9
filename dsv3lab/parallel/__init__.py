"""Many devices: the mesh, the collectives and the steps that run on it."""

from dsv3lab.parallel.data import all_reduce_rate as all_reduce_rate
from dsv3lab.parallel.data import data_parallel as data_parallel
from dsv3lab.parallel.devices import make_mesh as make_mesh
from dsv3lab.parallel.devices import simulate_devices as simulate_devices
from dsv3lab.parallel.execution import make_execution as make_execution
from dsv3lab.parallel.remat import with_remat as with_remat
