"""Fixtures of the studies' tests."""

import os
from pathlib import Path

import pytest

from tests.studies.fake import trainer as trainer


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the tests of this session keep prepared data."""
    return Path(os.environ["DSV3LAB_TESTS"]) / "data"
