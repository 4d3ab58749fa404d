"""A small Ray on this machine, whose workers get the environment of the tests."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
import ray.data
from ray.cluster_utils import Cluster

KEY = "test-key"


@contextmanager
def local_ray(cpus: int = 2) -> Iterator[None]:
    """Run Ray with some CPUs, and OPENAI_API_KEY in the environment of its workers and of the driver."""
    with _environment():
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def local_machines(*cpus: int) -> Iterator[tuple[Cluster, list[Any]]]:
    """Run Ray with a head without CPUs, on which the driver is, and machines with some. Yield it and the machines."""
    with _environment():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            machines = [cluster.add_node(num_cpus=n) for n in cpus]
            ray.init(cluster.address, log_to_driver=False, logging_level="error")
            yield cluster, machines
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it warns of otherwise
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                gc.collect()  # what Ray has left open, which would be an error in the next test
