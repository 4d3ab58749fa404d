"""The invariants of several processes with a coordinator in Redis, whose replies are also lost, on a virtual clock."""

from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from invariants.test_coordination_invariants import SETTINGS, CoordinationMachine
from support.redis_coordinators import VirtualParticipant
from support.redis_server import RedisServer


class RedisMachine(CoordinationMachine):
    server: ClassVar[RedisServer]

    def new_coordinator(self):
        with self.server.client() as client:
            client.flushdb()
        return VirtualParticipant(self.server, self.clock)

    def has_leases(self) -> bool:
        return self.coordinator.has_leases

    @precondition(lambda self: self.with_outages and any(process.has_jobs for process in self.running))
    @rule(data=st.data(), is_lost=st.sampled_from([False] * 5 + [True]))
    def lose_reply(self, data: st.DataObject, is_lost: bool) -> None:
        """Ask the coordinator, which grants, and seldom lose its reply: what was asked for may be paid for again."""
        if not is_lost:
            self.ask_coordinator(data)
            return
        process = self.any_of(data, lambda process: process.has_jobs)
        self.excused |= {item.root.key for request in process.asking for item in request.items}
        self.was_cut_off = True
        process.coordinator.loses_reply = True
        self.work(process)
        process.coordinator.loses_reply = False


TestRedisInvariants = RedisMachine.TestCase
TestRedisInvariants.settings = SETTINGS


@pytest.fixture(autouse=True)
def server(redis):
    RedisMachine.server = redis
