"""Cases of the coordinator suite: limits per minute and pauses, which all participants share."""

# ruff: noqa: D102 - test names are sentences

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embedkit_core.common.types import RateSettings
from embedkit_core.coordination.port import MAX_WAIT_AHEAD, Coordinator, End, Grant, ProviderAccount
from embedkit_core.providers.secrets import Secret
from embedkit_core.testing.coordination_cases import (
    ACCOUNT,
    MODEL,
    CoordinationCases,
    begin,
    cancel,
    claim,
    end,
    new_keys,
    request,
)

TEN_REQUESTS, HUNDRED_TOKENS = RateSettings(10, None), RateSettings(None, 100)


class LimitCases(CoordinationCases):
    """Limits per minute and pauses."""

    def test_requests_within_the_limit_are_not_delayed_and_the_next_one_waits(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        grants = [_send(one if n % 2 else two, TEN_REQUESTS, tokens=1000) for n in range(10)]
        assert [grant.wait for grant in grants] == [0.0] * 10
        assert all(grant.lease is not None for grant in grants)
        for coordinator in (one, two):
            _assert_refused(_send(coordinator, TEN_REQUESTS))

    def test_tokens_within_the_limit_are_not_delayed_and_the_next_ones_wait(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        assert _send(one, HUNDRED_TOKENS, tokens=60).lease is not None
        _assert_refused(_send(two, HUNDRED_TOKENS, tokens=50))
        assert _send(two, HUNDRED_TOKENS, tokens=30).lease is not None

    def test_a_refused_request_claims_and_takes_nothing(self, tmp_path: Path) -> None:
        one, two, keys = self.make(tmp_path), self.make(tmp_path), new_keys()
        _send(one, HUNDRED_TOKENS, tokens=60)
        _assert_refused(begin(one, request(keys, tokens=50, limits=HUNDRED_TOKENS)))
        assert _send(one, HUNDRED_TOKENS, tokens=30).lease is not None
        assert begin(two, request(keys)).lease is not None

    def test_what_others_wait_for_counts_until_it_is_granted(self, tmp_path: Path) -> None:
        """A text that would fit waits with a job that does not."""
        one, two, limits = self.make(tmp_path), self.make(tmp_path), RateSettings(None, 1000)
        assert _send(two, limits, tokens=600).wait == 0.0
        waiting = begin(one, request(new_keys(), tokens=500, limits=limits))
        assert waiting.lease is None
        assert _send(two, limits, tokens=300).lease is None
        one.exchange([request(new_keys(), tokens=10, limits=limits)], [])  # the job was withdrawn
        assert _send(two, limits, tokens=300).wait == 0.0

    def test_the_limit_holds_after_the_requests_have_ended(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        for _ in range(10):
            _end(one, _send(one, TEN_REQUESTS), tokens=10)
        _assert_refused(_send(two, TEN_REQUESTS))

    def test_a_request_that_was_not_sent_gives_its_permit_back(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        grants = [_send(one, TEN_REQUESTS) for _ in range(10)]
        assert grants[0].lease is not None
        cancel(one, grants[0].lease)
        assert _send(two, TEN_REQUESTS).lease is not None
        _assert_refused(_send(two, TEN_REQUESTS))

    def test_billed_tokens_replace_the_estimated_ones(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        _end(one, _send(one, HUNDRED_TOKENS, tokens=90), tokens=20)
        _end(two, _send(two, HUNDRED_TOKENS, tokens=70), tokens=75)
        _assert_refused(_send(one, HUNDRED_TOKENS, tokens=1))

    def test_the_limit_holds_for_each_model_of_an_account(self, tmp_path: Path) -> None:
        one = self.make(tmp_path)
        for _ in range(10):
            _send(one, TEN_REQUESTS)
        accounts = [
            (ProviderAccount("acme", "", name="another"), MODEL),
            (ProviderAccount("acme", "", Secret("acme-another-key")), MODEL),
            (ProviderAccount("acme", "https://another.example", ACCOUNT.secret), MODEL),
            (ACCOUNT, "acme:large"),
        ]
        for account, model in accounts:
            grant = begin(one, request(new_keys(), limits=TEN_REQUESTS, account=account, model=model))
            assert (grant.lease is not None, grant.wait) == (True, 0.0)

    def test_a_participant_without_limits_is_not_delayed(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        for _ in range(10):
            _send(one, TEN_REQUESTS)
        assert [begin(two, request(new_keys())).wait for _ in range(20)] == [0.0] * 20

    def test_each_participant_keeps_its_own_limit(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        for _ in range(10):
            _send(one, TEN_REQUESTS)
        assert _send(two, RateSettings(15, None)).wait == 0.0
        _assert_refused(_send(one, TEN_REQUESTS))

    def test_a_query_passes_when_the_others_have_used_their_share(self, tmp_path: Path) -> None:
        one, two, limits = self.make(tmp_path), self.make(tmp_path), RateSettings(None, 1000)
        assert _send(one, limits, tokens=950).wait == 0.0
        _assert_refused(_send(two, limits, tokens=20))
        assert begin(two, request(new_keys(), tokens=20, limits=limits, is_query=True)).wait == 0.0

    def test_a_job_above_the_limit_is_paced(self, tmp_path: Path) -> None:
        """At 10 requests a second, with 2 s in arrears and 2 s in advance."""
        one, two, limits = self.make(tmp_path), self.make(tmp_path), RateSettings(600, None)
        started, waits = time.monotonic(), []
        for coordinator in [one, two] * 100:
            grant = begin(coordinator, request(new_keys(), limits=limits, backlog=3000))
            if grant.lease is None:
                break
            waits.append(grant.wait)
        else:
            raise AssertionError("200 of 600 requests a minute are granted at once to a job of 3,000")
        assert MAX_WAIT_AHEAD < grant.wait < 5
        assert waits[0] == 0.0
        assert max(waits) <= MAX_WAIT_AHEAD
        assert 20 <= len(waits) <= 10 * (2 * MAX_WAIT_AHEAD + time.monotonic() - started) + 1

    def test_concurrent_participants_share_one_limit(self, tmp_path: Path) -> None:
        def run(number: int) -> int:
            one = self.make(tmp_path)
            granted = sum(_send(one, RateSettings(20, None), tokens=number).lease is not None for _ in range(15))
            one.close()
            return granted

        with ThreadPoolExecutor(3) as pool:
            assert sum(pool.map(run, range(3))) == 19  # one is kept for queries

    def test_all_participants_keep_a_pause(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        one.exchange([], [End(claim(one, new_keys()), time.monotonic(), pause=30.0)])
        for coordinator in (one, two):
            grant = begin(coordinator, request(new_keys()))
            assert grant.lease is None
            assert 25 < grant.wait <= 30
            assert 25 < grant.paused <= 30
        assert begin(two, request(new_keys(), model="acme:large")).wait == 0.0

    def test_a_short_pause_is_waited_for(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        one.exchange([], [End(claim(one, new_keys()), time.monotonic(), pause=1.5)])
        grant = begin(two, request(new_keys()))
        assert grant.lease is not None
        assert 0 < grant.wait <= 1.5

    def test_a_shorter_pause_does_not_end_a_longer_one(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        leases = [claim(one, new_keys()), claim(two, new_keys())]
        one.exchange([], [End(leases[0], time.monotonic(), pause=30.0)])
        two.exchange([], [End(leases[1], time.monotonic(), pause=1.0)])
        assert begin(two, request(new_keys())).wait > 25


def _send(coordinator: Coordinator, limits: RateSettings, *, tokens: int = 10) -> Grant:
    """Begin a request with one text, with nothing else waiting."""
    return begin(coordinator, request(new_keys(), tokens=tokens, limits=limits))


def _end(coordinator: Coordinator, grant: Grant, *, tokens: int) -> None:
    assert grant.lease is not None
    end(coordinator, grant.lease, tokens=tokens)


def _assert_refused(grant: Grant) -> None:
    """Fail unless a request must be asked for again in about a minute."""
    assert grant.lease is None, "a request above the limit is granted"
    assert 30 < grant.wait < 62
