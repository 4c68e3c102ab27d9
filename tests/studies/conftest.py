"""Fixtures of the studies' tests."""

from tests.studies.fake import trainer as trainer
