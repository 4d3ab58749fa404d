"""The coordinator in Redis passes the suite for coordinators."""

import pytest
from support import redis_coordinators

from embedkit_core.testing import CoordinationSuite


class TestRedisCoordinator(CoordinationSuite):
    """Other tests kill and stop real processes: here the last sign of life of an owner is set back."""

    @pytest.fixture(autouse=True)
    def database(self, redis):
        self.server = redis

    def make(self, folder):
        return redis_coordinators.coordinator(self.server)

    def kill(self, coordinator):
        redis_coordinators.stop(self.server, coordinator)

    def stop(self, coordinator):
        redis_coordinators.stop(self.server, coordinator)
