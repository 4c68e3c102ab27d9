"""Reading traced programs: what a function computes, keeps and communicates, before it runs and on no device."""

from dsv3lab.program.collectives import Collective as Collective
from dsv3lab.program.collectives import collectives as collectives
from dsv3lab.program.flops import flops as flops
from dsv3lab.program.residuals import Residual as Residual
from dsv3lab.program.residuals import Residuals as Residuals
from dsv3lab.program.residuals import residuals as residuals
from dsv3lab.program.walk import Site as Site
from dsv3lab.program.walk import sites as sites
