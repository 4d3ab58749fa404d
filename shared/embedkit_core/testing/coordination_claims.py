"""Cases of the coordinator suite: which participant sends a text, and when the others may have it."""

# ruff: noqa: D102 - test names are sentences

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embedkit_core.coordination.port import Coordinator, End, LeaseID
from embedkit_core.testing.coordination_cases import (
    API_KEY,
    CoordinationCases,
    begin,
    cancel,
    claim,
    end,
    new_keys,
    request,
)

TEXTS = 2048  # of a large request


class ClaimCases(CoordinationCases):
    """Claims of texts."""

    def test_the_coordinator_has_the_required_methods(self, tmp_path: Path) -> None:
        assert isinstance(self.make(tmp_path), Coordinator), (
            "a coordinator must have exchange(begins, ends), renew(), ended(leases), open_budget(name, limit), close()"
        )

    def test_a_lone_participant_may_send_everything_and_never_reads_the_cache_again(self, tmp_path: Path) -> None:
        one, keys, since = self.make(tmp_path), new_keys(3), time.monotonic()
        for _ in range(3):
            grant = begin(one, request(keys, since=since))
            assert grant.lease is not None
            assert (dict(grant.others), list(grant.recheck), dict(grant.unfunded)) == ({}, [], {})
            assert (grant.wait, grant.paused, grant.processes) == (0.0, 0.0, 1)
            end(one, grant.lease)

    def test_a_text_that_another_participant_sends_is_not_granted(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys(4)
        lease = claim(one, keys[1:3])
        grant = begin(two, request(keys))
        assert dict(grant.others) == {1: lease, 2: lease}
        assert grant.lease is not None, "texts that no participant is sending must be granted"
        assert grant.processes == 2
        assert dict(begin(one, request([keys[0], keys[1]])).others) == {0: grant.lease}

    def test_a_request_whose_texts_are_all_sent_by_others_gets_no_lease(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys(2)
        lease = claim(one, keys)
        grant = begin(two, request(keys))
        assert grant.lease is None
        assert dict(grant.others) == {0: lease, 1: lease}

    def test_a_text_without_a_key_is_always_granted(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), [b"", *new_keys()]
        claim(one, keys)
        grant = begin(two, request(keys))
        assert grant.lease is not None
        assert list(grant.others) == [1]

    def test_a_text_that_was_sent_since_its_look_up_must_be_looked_up_again(self, tmp_path: Path) -> None:
        one, two, keys, since = self.make(tmp_path), self.make(tmp_path), new_keys(2), time.monotonic()
        end(one, claim(one, keys[:1]))
        grant = begin(two, request(keys, since=since))
        assert list(grant.recheck) == [0]
        assert not grant.others
        assert grant.lease is not None
        cancel(two, grant.lease)
        claim(two, keys)  # after another look-up

    def test_a_request_that_was_not_sent_releases_its_texts(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        cancel(one, claim(one, keys))
        claim(two, keys)

    def test_ends_come_before_begins_of_the_same_exchange(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys(2)
        lease = claim(one, keys[:1])
        [grant] = one.exchange([request(keys[1:])], [End(lease, time.monotonic())])
        claim(two, keys[:1])
        assert grant.lease is not None
        assert dict(begin(two, request(keys[1:])).others) == {0: grant.lease}

    def test_each_begin_gets_its_grant_in_order(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys(3)
        lease = claim(one, keys[1:2])
        grants = two.exchange([request([key]) for key in keys], [])
        assert [dict(grant.others) for grant in grants] == [{}, {0: lease}, {}]
        assert grants[1].lease is None
        assert len({grant.lease for grant in grants}) == 3

    def test_ended_names_the_leases_that_have_ended(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys(2)
        leases = [claim(one, [key]) for key in keys]
        assert list(two.ended(leases)) == []
        end(one, leases[0])
        assert list(two.ended(leases)) == leases[:1]
        cancel(one, leases[1])
        assert set(two.ended(leases)) == set(leases)

    def test_an_end_that_is_repeated_changes_nothing(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        lease = claim(one, keys)
        end(one, lease)
        again = claim(two, keys)
        end(one, lease)
        assert list(one.ended([again])) == []
        assert dict(begin(one, request(keys)).others) == {0: again}

    def test_a_renewed_lease_is_kept(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        one.renew()
        lease = claim(one, keys)
        one.renew()
        assert dict(begin(two, request(keys)).others) == {0: lease}

    def test_a_large_request_is_claimed_as_a_whole(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys(TEXTS)
        lease = claim(one, keys)
        assert dict(begin(two, request(keys)).others) == dict.fromkeys(range(TEXTS), lease)
        end(one, lease)
        claim(two, keys)

    def test_concurrent_participants_never_send_a_text_at_the_same_time(self, tmp_path: Path) -> None:
        """Each text is sent once: if it was sent since a look-up, the cache is read again."""
        keys, rounds, cached, sent = new_keys(40), 4, set[bytes](), Counter[bytes]()
        lock, start = threading.Lock(), threading.Barrier(rounds)

        def run(number: int) -> None:
            one = self.make(tmp_path)
            start.wait(timeout=60)
            for offset in range(0, len(keys), 4):
                wanted = [keys[(offset + number + i) % len(keys)] for i in range(6)]
                _send_all(one, wanted, cached, sent, lock)
            one.close()

        with ThreadPoolExecutor(rounds) as pool:
            for future in [pool.submit(run, number) for number in range(rounds)]:
                future.result(timeout=100)
        assert set(sent) == set(keys)
        assert set(sent.values()) == {1}, f"texts are sent {max(sent.values())} times"

    def test_a_closed_coordinator_reopens_on_the_next_call(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        one.close()
        lease = claim(one, keys)
        assert dict(begin(two, request(keys)).others) == {0: lease}
        end(one, lease)
        one.close()
        one.close()
        claim(two, keys)

    def test_closing_ends_no_request(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        lease = claim(one, keys)
        one.close()
        assert dict(begin(two, request(keys)).others) == {0: lease}
        end(one, lease)
        claim(two, keys)

    def test_no_file_holds_the_api_key(self, tmp_path: Path) -> None:
        one = self.make(tmp_path)
        end(one, claim(one, new_keys()))
        claim(one, new_keys())
        one.close()
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and API_KEY.encode() in path.read_bytes()]

    # Lost leases

    def test_the_texts_of_a_killed_participant_are_released(self, tmp_path: Path) -> None:
        one, two, keys, since = self.make(tmp_path), self.make(tmp_path), new_keys(2), time.monotonic()
        lease = claim(one, keys)
        claim(two, new_keys())
        self.kill(one)
        assert list(two.ended([lease])) == [lease]
        grant = begin(two, request(keys, since=since))
        assert list(grant.recheck) == [0, 1], "the killed participant may have completed its texts"
        claim(two, keys)

    def test_the_texts_of_a_stopped_participant_are_released(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        lease = claim(one, keys)
        claim(two, new_keys())
        self.stop(one)
        assert list(two.ended([lease])) == [lease]
        again = claim(two, keys)
        end(one, lease)  # it runs again
        assert dict(begin(one, request(keys)).others) == {0: again}


def _send_all(
    one: Coordinator, wanted: list[bytes], cached: set[bytes], sent: Counter[bytes], lock: threading.Lock
) -> None:
    """Send the texts that are not cached, and wait for those that others send."""
    until = time.monotonic() + 60
    while True:
        assert time.monotonic() < until, "a text is neither granted nor completed for 60 s"
        since = time.monotonic()
        with lock:
            missing = [key for key in wanted if key not in cached]
        if not missing:
            return
        grant = begin(one, request(missing, since=since))
        if grant.lease is not None:
            mine = [key for i, key in enumerate(missing) if i not in grant.others and i not in grant.recheck]
            with lock:
                sent.update(mine)
                cached.update(mine)
            end(one, grant.lease)
        leases: set[LeaseID] = set(grant.others.values())
        while leases and time.monotonic() < until:
            leases -= set(one.ended(leases))
            time.sleep(0.001)
