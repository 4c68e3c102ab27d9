"""Studies: questions that need many trainings, with records of their own, outside the phases. Never imports JAX."""

from dsv3lab.studies.analysis import allowed_difference as allowed_difference
from dsv3lab.studies.log import StudyError as StudyError
from dsv3lab.studies.results import committed as committed
from dsv3lab.studies.results import show as show
