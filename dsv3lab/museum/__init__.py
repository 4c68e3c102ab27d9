"""Mistakes of reimplementations of DeepSeek-V3, most of them published: what each one spoils, and the test that catches it."""

from dsv3lab.museum.patched import Patched as Patched
from dsv3lab.museum.patched import load as load
from dsv3lab.museum.patched import load_switched as load_switched
from dsv3lab.museum.probe import PRODUCTS as PRODUCTS
from dsv3lab.museum.probe import QUANTITIES as QUANTITIES
from dsv3lab.museum.probe import Specimen as Specimen
from dsv3lab.museum.probe import difference as difference
from dsv3lab.museum.probe import look as look
from dsv3lab.museum.probe import look_at_all as look_at_all
from dsv3lab.museum.table import MISTAKES as MISTAKES
from dsv3lab.museum.table import ROOMS as ROOMS
from dsv3lab.museum.table import Mistake as Mistake
from dsv3lab.museum.training import OTHERS as OTHERS
from dsv3lab.museum.training import RIGHT as RIGHT
from dsv3lab.museum.training import Lesson as Lesson
from dsv3lab.museum.training import train as train
