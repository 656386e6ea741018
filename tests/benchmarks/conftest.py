"""The scripts of ``benchmarks/`` can be imported, here and in processes that they start."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
#: The benchmarks are not part of a source distribution.
collect_ignore_glob = [] if FOLDER.is_dir() else ["test_*.py"]
