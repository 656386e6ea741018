"""What the tests of the readers share."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def made():
    """The module that writes TFRecord files: ``tfrecord_files``."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("tfrecord_files")
    finally:
        sys.path.pop(0)
