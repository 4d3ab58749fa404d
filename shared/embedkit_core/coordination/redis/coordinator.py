"""Coordinator of all processes that use one Redis database, on one machine or on many."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, TypeVar

from embedkit_core.cache.redis.connection import RedisConnection
from embedkit_core.cache.redis.failures import RedisAccessError
from embedkit_core.common.errors import CoordinationError
from embedkit_core.common.fork_safety import ForkLock, register_after_fork
from embedkit_core.coordination import rules
from embedkit_core.coordination.port import NO_AMOUNT, Begin, End, Grant, LeaseID
from embedkit_core.coordination.redis import checks, messages
from embedkit_core.coordination.redis.scripts import OWNER_DIGITS, VERSION, microseconds, script
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus

T = TypeVar("T")
_Fields: TypeAlias = dict[str, Any]
logger = logging.getLogger("embedkit_core.coordination")

OFFSET_SECONDS = 30.0  # that the difference to the server's clock is used; clocks drift and are set
_MAX_DRIFT = 0.001
_ATTEMPTS = 3  # at a call, while Redis loses its data again and again


class _Store(NamedTuple):
    """What a database is known by.

    Attributes:
        id: Its identifier, which another one has if Redis has lost its data.
        salt: The salt of the accounts' digests.
    """

    id: str
    salt: bytes


class RedisCoordinator:
    """A coordinator of all processes that use a Redis database. Lua scripts decide, on the server's clock.

    A process that shows no sign of life for `LEASE_SECONDS` loses its leases. If a reply is lost, what it may have
    granted is released by the next call.
    """

    def __init__(self, connection: RedisConnection, clock: Callable[[], float] | None = None) -> None:
        """Create a coordinator without connecting.

        Args:
            connection: The connection.
            clock: A clock that all processes share, in place of the server's. It is also the clock of this process.
        """
        self._connection = connection
        self._clock = clock
        self._guard = ForkLock()
        self._store: _Store | None = None
        self._info: Mapping[str, Any] = {}
        self._has_lost_data = False
        self._opened_budgets: dict[str, BudgetLimit] = {}
        self._warned: set[str] = set()
        self._offset = (0, float("-inf"))  # a lower bound of server time - own time, and when it was measured
        self._become_owner()
        register_after_fork(self)

    def exchange(self, begins: Sequence[Begin], ends: Sequence[End]) -> list[Grant]:
        """End requests and begin others, in one atomic step. Return a grant for each of `begins`."""
        with self._change():
            self._has_exchanged = True
            own = [end for end in ends if self._is_own(end.lease)]
            ids: list[str] = []

            def request(store: _Store) -> tuple[_Fields, list[bytes]]:
                at, ago = self._times()
                ids[:] = [self._next_lease() for _ in begins]
                models = [self._model(begin, store) for begin in begins]
                asked = [messages.begin_request(*one, ago) for one in zip(begins, ids, models, strict=True)]
                ended = [messages.end_request(end, ago) for end in own]
                packed = [messages.pack_keys(begin.keys) for begin in begins]
                is_renewal = not begins and not own
                return {**self._identity(names_leases=is_renewal), **at, "begins": asked, "ends": ended}, packed

            processes, replies = self._ask("exchange", request)
            grants = [messages.grant_of(reply, lease, processes) for reply, lease in zip(replies, ids, strict=True)]
            self._leases.difference_update(end.lease for end in own)
            self._leases.update(grant.lease for grant in grants if grant.lease is not None)
            return grants

    def renew(self) -> None:
        """Keep the leases of this process. Others of its own count as lost: Redis may have lost their end."""
        if self._leases or self._is_unsure:
            self.exchange([], [])

    def ended(self, leases: Collection[LeaseID]) -> Collection[LeaseID]:
        """Return those of other processes' leases that have ended or are lost."""
        ids = [str(lease) for lease in leases]
        with self._guard.lock:
            (positions,) = self._ask("ended", lambda _: ({"owner": self._owner, "leases": ids}, []))
            asked = list(leases)
            return [asked[position] for position in positions]

    def open_budget(self, name: str, limit: BudgetLimit) -> None:
        """Create a named budget, or check the limits of an existing one.

        Raises:
            ConfigurationError: It exists with other limits.
        """
        limit = messages.storable(limit)
        with self._guard.lock:
            self._check_budgets_are_safe()
            (reply,) = self._ask("open_budget", lambda _: ({"name": name, **messages.limit_request(limit)}, []))
            rules.check_limit(messages.status_of(reply), limit)
            self._opened_budgets[name] = limit

    def hold(self, hold: str, budget: str, limit: BudgetLimit, amount: Amount) -> BudgetStatus | None:
        """Reserve an upper bound in a named budget, until its final settlement. Return the budget if it has no room."""
        fields = {"hold": hold, "name": budget, **messages.limit_request(limit), "amount": messages.numbers(amount)}
        with self._guard.lock:
            self._check_budgets_are_safe()
            self._has_exchanged = True
            (full,) = self._ask("hold", lambda _: ({"owner": self._owner, **fields}, []))
        return messages.status_of(full[0]) if full else None

    def settle(self, hold: str, budget: str, billed: Amount, lost: Amount = NO_AMOUNT, *, is_final: bool) -> None:
        """Count what was billed so far of the work of a hold, in place of what is held."""
        amounts = {"billed": messages.numbers(billed), "lost": messages.numbers(lost)}
        fields = {"hold": hold, "name": budget, **amounts, "is_final": is_final}
        with self._guard.lock:
            self._has_exchanged = True
            self._ask("settle", lambda _: ({"owner": self._owner, **fields}, []))

    def budgets(self) -> list[BudgetStatus]:
        """Return all named budgets, by name. Nothing is created."""
        with self._guard.lock:
            (replies,) = self._call("budgets", {"owner": self._owner})
        return sorted(messages.status_of(reply) for reply in replies)

    def reset_budget(self, name: str) -> BudgetStatus | None:
        """Reset what was spent of a named budget, and its limits, which its next user sets.

        Returns:
            The budget as it was. None if there is none of that name.
        """
        with self._guard.lock:
            (replies,) = self._call("reset_budget", {"owner": self._owner, "name": name})
        return messages.status_of(replies[0]) if replies else None

    def close(self) -> None:
        """Close the connection. The next call opens it again. Leases that have not ended are kept."""
        try:
            if self._has_exchanged:
                with self._change():
                    self._ask(
                        "leave", lambda _: ({**self._identity(names_leases=True), "models": sorted(self._models)}, [])
                    )
                    self._has_exchanged = False
        except CoordinationError:
            pass  # its leases are lost soon
        finally:
            self._connection.close()

    def after_fork_in_child(self) -> None:
        """Become an owner of its own, with none of the parent's leases."""
        self._become_owner()

    def __repr__(self) -> str:
        return f"RedisCoordinator({self._connection.name!r})"

    # This process as an owner

    def _become_owner(self) -> None:
        self._owner = secrets.token_hex(OWNER_DIGITS // 2)
        self._attempt = 0  # of a call
        self._lease = 0
        self._has_exchanged = False
        self._leases: set[LeaseID] = set()  # that were granted, and have not ended
        self._models: set[str] = set()
        self._is_unsure = False  # if a reply was lost

    def _is_own(self, lease: LeaseID) -> bool:
        return isinstance(lease, str) and lease.startswith(f"{self._owner}.")

    def _next_lease(self) -> str:
        self._lease += 1
        return f"{self._owner}.{self._lease}"

    def _identity(self, *, names_leases: bool) -> _Fields:
        """Return the owner, and its leases if asked for, or if a lost reply may have granted others."""
        identity: _Fields = {"owner": self._owner, "is_unsure": self._is_unsure}
        if names_leases or self._is_unsure:
            identity["keep"] = sorted(map(str, self._leases))
        return identity

    def _model(self, begin: Begin, store: _Store) -> str:
        model = f"{begin.account.digest(store.salt)}|{begin.model}"
        if any(begin.limits):
            self._models.add(model)
        return model

    # Time

    def _times(self) -> tuple[dict[str, int], Callable[[float], int]]:
        """Return the time for a script, and a function that returns how long ago another time was.

        The script has the server's time when it runs, which is later. What it must not take for too late has the
        time `at`, which is too early rather than too late.
        """
        if self._clock is not None:
            now = microseconds(self._clock())
            return {"now": now}, lambda at: now - microseconds(at)
        if time.monotonic() - self._offset[1] > OFFSET_SECONDS:
            seconds, micros = self._run(lambda client: client.time())
            self._note_time(seconds * 1_000_000 + micros)
        offset, measured_at = self._offset
        own = time.monotonic()
        at = microseconds(own - _MAX_DRIFT * (own - measured_at)) + offset
        return {"at": at}, lambda at: microseconds(own) - microseconds(at)

    def _note_time(self, server_time: int) -> None:
        """Note the time of a reply that has just arrived."""
        own = time.monotonic()
        self._offset = (server_time - microseconds(own), own)

    # Calls

    def _run(self, operation: Callable[[Any], T]) -> T:
        try:
            return self._connection.run(operation)
        except RedisAccessError as error:
            failure = CoordinationError(str(error))
            failure.is_logged = error.is_logged
            raise failure from error

    def _call(self, name: str, request: _Fields, *packed: bytes) -> Sequence[Any]:
        """Run a script. Return its reply without the time; ["store"] or ["overtaken"] if it has refused."""
        if self._clock is not None and "now" not in request:
            request = {"now": microseconds(self._clock()), **request}
        text = json.dumps(request, separators=(",", ":"))

        def run(client: Any) -> Sequence[Any]:
            self._attempt += 1  # for each attempt: one whose connection was lost may arrive later
            return script(name).run(client, text, self._attempt, *packed)

        status, *reply = self._run(run)
        if status == b"version":
            raise CoordinationError(
                f"Redis {self._connection.name} has coordination data of version {reply[0].decode()}, and this process "
                f"uses version {VERSION}. Use one version of rag-embedkit in all processes that share it, or another "
                "database."
            )
        if status != b"ok":
            return [status.decode()]
        self._note_time(reply[0])
        return reply[1:]

    def _ask(self, name: str, request: Callable[[_Store], tuple[_Fields, list[bytes]]]) -> Sequence[Any]:
        """Run a script on the store that is known, or on a new one if Redis has lost its data. Return its reply."""
        for _ in range(_ATTEMPTS):
            store = self._opened()
            fields, packed = request(store)
            reply = self._call(name, {"store": store.id, **fields}, *packed)
            if reply[:1] == ["store"]:
                self._forget_store()
            elif reply[:1] == ["overtaken"]:  # a copy of this process, such as a virtual machine, has the same ID
                self._become_owner()
            else:
                return reply
        raise CoordinationError(f"Redis {self._connection.name} loses its data again and again. Do not flush it.")

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Change leases inside the `with` block. If it fails, the next change releases those that are not known."""
        with self._guard.lock:
            is_done = False
            try:
                yield
                is_done = True
            finally:
                self._is_unsure = not is_done

    # The store

    def _opened(self) -> _Store:
        """Return the store, which is created if Redis has none."""
        if self._store is None:
            self._info = self._run(lambda client: client.info())
            reason = checks.defect(self._info)
            if reason is not None:
                self._connection.close()  # after a failover, its name may have another address
                raise CoordinationError(f"Redis {self._connection.name} cannot coordinate processes: {reason}.")
            if checks.eviction(self._info) is not None:
                self._warn(
                    "may evict what processes coordinate by (maxmemory-policy %s). Texts may be paid for more than "
                    "once, and limits per minute may be exceeded. Set maxmemory-policy to noeviction.",
                    checks.eviction(self._info),
                )
            lost = self._opened_budgets.items() if self._has_lost_data else ()
            new = {"new_store": secrets.token_hex(8), "new_salt": secrets.token_hex(32)}
            budgets = [{"name": name, **messages.limit_request(limit)} for name, limit in lost]
            store, salt = self._call("open", {**new, "lost_budgets": budgets})
            self._store = _Store(store.decode(), bytes.fromhex(salt.decode()))
            self._has_lost_data = False
        return self._store

    def _forget_store(self) -> None:
        """Note that Redis has lost its data: other leases, and what was spent, are not known."""
        logger.warning(
            "Redis %s has lost its data. Texts may be paid for more than once. The named budgets that this process "
            "uses count as possibly billed, up to their limits. Reset them with: rag-embedkit budget reset NAME",
            self._connection.name,
        )
        self._store = None
        self._has_lost_data = True
        self._leases.clear()

    def _check_budgets_are_safe(self) -> None:
        self._opened()
        policy = checks.eviction(self._info)
        if policy is not None:
            raise CoordinationError(
                f"budget_name: Redis {self._connection.name} may evict named budgets (maxmemory-policy {policy}). Set "
                "maxmemory-policy to noeviction, or use another Redis for coordination=."
            )
        if not checks.is_durable(self._info):
            self._warn(
                "does not log changes to disk (appendonly no). After a crash or a failover, named budgets may lack "
                "what was reserved and spent last. Set appendonly to yes.",
            )

    def _warn(self, message: str, *arguments: object) -> None:
        """Log a warning once."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(f"Redis %s {message}", self._connection.name, *arguments)
