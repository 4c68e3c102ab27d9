"""Figures from plain data (lists, arrays, mappings), in one style. Never imports JAX."""

from dsv3lab.plots.curves import bars as bars
from dsv3lab.plots.curves import heat as heat
from dsv3lab.plots.curves import lines as lines
from dsv3lab.plots.curves import loss as loss
from dsv3lab.plots.curves import matrices as matrices
from dsv3lab.plots.curves import matrix as matrix
from dsv3lab.plots.curves import panels as panels
from dsv3lab.plots.curves import strips as strips
from dsv3lab.plots.roofline import roofline as roofline
from dsv3lab.plots.studies import bands as bands
from dsv3lab.plots.studies import multiples as multiples
from dsv3lab.plots.studies import power_law as power_law
from dsv3lab.plots.style import COLOURS as COLOURS
from dsv3lab.plots.style import png as png
from dsv3lab.plots.style import style as style
from dsv3lab.plots.style import svg as svg
