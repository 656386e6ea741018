"""A Ray cluster of two workers on this machine."""

from collections.abc import Iterator

import pytest

from ivideogpt.scaling.ray_pool import RayPool


@pytest.fixture(scope="session")  # starting it takes longer than most tests
def cluster() -> Iterator[RayPool]:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield RayPool("auto")
    ray.shutdown()
