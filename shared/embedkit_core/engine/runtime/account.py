"""Runtime of one account's scheduler: its client, tasks and timer. Runs on the loop thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import random
import time
import traceback
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from embedkit_core.cache.access import DeferredWrites, Found
from embedkit_core.common.errors import EmbedKitError, ProviderError, TimedOutError
from embedkit_core.common.fork_safety import import_lock
from embedkit_core.common.threads import LOOKUPS, SLOW_LOOKUPS, off_loop, start_thread
from embedkit_core.common.types import Cache, Entry
from embedkit_core.common.vectors import VectorSpace
from embedkit_core.coordination.opening import CoordinatorHandle
from embedkit_core.coordination.port import End, Grant, LeaseID
from embedkit_core.engine.runtime.cache_writer import CacheWriter, WriteJob
from embedkit_core.engine.runtime.coordinator_thread import Check, CoordinatorThread, Exchange
from embedkit_core.engine.scheduler.items import Item, RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Actions, Request
from embedkit_core.engine.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from embedkit_core.engine.rate_limits.controller import RateController
    from embedkit_core.providers.base import Client
    from embedkit_core.providers.secrets import Secret


USER_CODE_THREAD = "embedkit-limiter"  # the name of threads that run rate limiters and api_key functions


class Account:
    """Carries out the actions of a scheduler, for one provider, endpoint and credential.

    Attributes:
        name: Identifies the account.
        endpoint: The server, for snapshots.
        users: The number of embedders that use it.
        idle_since: The time at which the last of them left.
        scheduler: The scheduler; replaced after an internal error.
        loop: The engine's event loop.
    """

    def __init__(
        self,
        name: Hashable,
        *,
        connect: Callable[[], Client],
        in_flight: int | None,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Account, Callable[[], None]], None],
        writer: CacheWriter,
        coordinator: Callable[[CoordinatorHandle], CoordinatorThread],
        secret: Secret | None = None,
        endpoint: str = "",
        server: str = "the server",
    ) -> None:
        """Create an account without a connection.

        Args:
            name: Identifies the account.
            connect: Creates the client; called on a worker thread before the first request.
            in_flight: The provider's bound on requests in flight.
            loop: The engine's event loop.
            call: Schedules a function of an account on the loop thread.
            writer: Writes rows to caches.
            coordinator: Returns the thread of a coordinator.
            secret: The API key; a function as its source is called before each request.
            endpoint: The server, for snapshots.
            server: The server's name in errors.
        """
        self.name = name
        self.endpoint = endpoint
        self._secret = secret if secret is not None and secret.source is not None else None
        self.users = 0
        self.idle_since = loop.time()
        self._in_flight = in_flight
        self._server = server
        self.scheduler = self._new_scheduler()
        self._connect = connect
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self.loop = loop
        self._call = call
        self._writer = writer
        self._coordinator = coordinator
        self._refreshing: asyncio.Future[ProviderError | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[Ticket] = set()

    # For caller threads

    def open_lookup(self, lookup: object) -> int:
        """Open a cache look-up: keep the rows completed from now on. Return the number of completed requests."""
        return self.scheduler.recent.open(lookup)

    def close_lookup(self, lookup: object) -> None:
        """Close a cache look-up."""
        self.scheduler.recent.close(lookup)

    def known_rate_controller(self, model: str) -> RateController | None:
        """Return the rate controller of a recently used model."""
        return self.scheduler.dispatcher.known_rate_controller(model)

    # For the loop thread

    def submit(
        self,
        ticket: Ticket,
        spec: RequestSpec,
        texts: Sequence[tuple[bytes, str, int]],
        too_long: Mapping[int, int],
        lookup: object,
    ) -> None:
        """Submit a ticket, with the arguments of `Scheduler.submit`, and close its cache look-up."""
        self._waiting.add(ticket)
        try:
            self.scheduler.submit(ticket, spec, texts, self.loop.time(), too_long)
        finally:
            self.close_lookup(lookup)

    def withdraw(self, ticket: Ticket, lookup: object) -> None:
        """Remove a caller and close its look-up."""
        self.close_lookup(lookup)
        self._waiting.discard(ticket)
        self.scheduler.withdraw(ticket)

    def _rows_written(self, request: Request, is_stored: bool) -> None:
        """Accept on the writer thread that the rows of a request are in their caches."""
        self._call(self, partial(self._committed, request, is_stored=is_stored))

    def _committed(self, request: Request, *, is_stored: bool) -> None:
        if self.scheduler.owns(request):
            self.scheduler.committed(request, is_stored=is_stored)

    def _rows_stored(self, request: Request) -> None:
        """Accept on any thread that other machines can read the rows of a request."""
        self._call(self, partial(self._stored, request))

    def _stored(self, request: Request) -> None:
        if self.scheduler.owns(request):
            self.scheduler.stored(request)

    def run_guarded(self, event: Callable[[], None]) -> None:
        """Run an event of the scheduler. If it raises, fail all callers instead of leaving them waiting."""
        try:
            event()
        except Exception as error:
            self._fail_all(error)

    def pump(self) -> None:
        """Carry out the actions of the scheduler until there are no more."""
        self.run_guarded(self._pump)

    def _pump(self) -> None:
        while self._pump_once():
            pass

    def _pump_once(self) -> bool:
        """Poll and carry out the actions. Return True if the scheduler must be polled again at once."""
        actions = self.scheduler.poll(self.loop.time())
        for request in actions.acquire:
            self._start_acquiring(request)
        self._exchange(actions)
        for items in actions.look_up:
            SLOW_LOOKUPS.submit(partial(self._read_caches, items))
        for request in actions.send:
            task = self.loop.create_task(self._send(request), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        committed = False
        for request in actions.commit:
            if writes := request.take_writes():
                self._writer.put(WriteJob(request, writes, self._rows_written, self._rows_stored))
            else:
                self.scheduler.committed(request)
                committed = True
        for ticket in actions.wake:
            self._waiting.discard(ticket)
            ticket.wake()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if actions.wake_at is None else self.loop.call_at(actions.wake_at, self.pump)
        return committed

    def _exchange(self, actions: Actions) -> None:
        """Hand what concerns coordinators to their threads: requests and leases in one exchange."""
        exchanges: dict[CoordinatorHandle, Exchange] = {}
        for handle, end in actions.end:
            exchanges.setdefault(handle, Exchange([], [])).ends.append(end)
        for request in actions.begin:
            coordination = request.queue.spec.coordination
            assert coordination is not None
            assert request.begin is not None
            exchange = exchanges.setdefault(coordination.handle, Exchange([], []))
            exchange.begins.append((request.begin, partial(self._granted, request)))
        for handle, exchange in exchanges.items():
            try:
                self._coordinator(handle).put(exchange)
            except EmbedKitError as error:  # its thread cannot be started
                for _, granted in exchange.begins:
                    granted(str(error))
        for handle, leases in actions.check:
            try:
                self._coordinator(handle).put(Check(leases, partial(self._checked, handle)))
            except EmbedKitError:
                self._checked(handle, None)

    def _granted(self, request: Request, grant: Grant | str) -> None:
        """Accept a coordinator's answer on its thread; text if it cannot be reached."""

        answered_at = self.loop.time()

        def accept() -> None:
            shared, now = self.scheduler.shared, self.loop.time()
            if not self.scheduler.owns(request):
                if isinstance(grant, Grant) and grant.lease is not None:
                    coordination = request.queue.spec.coordination
                    assert coordination is not None
                    self._end_lease(coordination.handle, End(grant.lease))
            elif isinstance(grant, str):
                shared.unreachable(request, grant, now)
            else:
                shared.granted(request, grant, now, answered_at)

        self._call(self, accept)

    def _end_lease(self, handle: CoordinatorHandle, end: End) -> None:
        """End a lease that no scheduler has any more."""
        with contextlib.suppress(EmbedKitError):  # its thread cannot be started
            self._coordinator(handle).put(Exchange([], [end]))

    def _checked(self, handle: CoordinatorHandle, ended: Collection[LeaseID] | None) -> None:
        self._call(self, lambda: self.scheduler.shared.checked(handle, ended, self.loop.time()))

    def _read_caches(self, items: list[Item]) -> None:
        """Read the caches of items on a worker thread, and hand what was found to the scheduler."""
        started_at = time.monotonic()
        keys: dict[tuple[int, VectorSpace | None], tuple[Cache, list[bytes]]] = {}
        for root in {item.root for item in items}:
            for cache in root.caches:
                keys.setdefault((id(cache), root.queue.spec.space), (cache, []))[1].append(root.key)
        found: dict[bytes, tuple[Entry, Cache]] = {}
        for (_, space), (cache, wanted) in keys.items():
            with contextlib.suppress(BaseException):  # a failed read is a miss
                blocks: Iterable[Found]
                blocks = cache.read(wanted, space) if isinstance(cache, DeferredWrites) else [cache.get_many(wanted)]
                for block in blocks:
                    found |= {key: (entry, cache) for key, entry in block.items()}
        self._call(self, lambda: self.scheduler.looked_up(items, found, started_at))

    def _start_acquiring(self, request: Request) -> None:
        tokens = request.queue.rate_controller.tokens(request.size)
        try:
            start_thread(lambda: self._acquire_permit(request, tokens), USER_CODE_THREAD)
        except EmbedKitError as error:
            self.loop.call_soon(self._permit_acquired, request, ProviderError(str(error)))

    def _acquire_permit(self, request: Request, tokens: int) -> None:
        """Acquire a permit on a thread of its own, since user code may block."""
        limiter = request.queue.spec.limiter
        assert limiter is not None
        failure: ProviderError | None = None
        try:
            limiter.acquire(tokens)
        except ProviderError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self.loop.call_soon_threadsafe(self._permit_acquired, request, failure)

    def _permit_acquired(self, request: Request, failure: ProviderError | None) -> None:
        if self.scheduler.owns(request):
            scheduler = self.scheduler
            self.run_guarded(
                lambda: scheduler.limiter_failed(request, failure) if failure else scheduler.permit_granted(request)
            )
        self.pump()

    async def _send(self, request: Request) -> None:
        model, timeout = request.queue.spec.model, request.batch.timeout
        error: ProviderError
        sent = False
        try:
            if self._secret is not None:
                await self._refresh_key(self._secret, within=timeout)
            client = self._client or await self._open_client()
            # A client's own timeouts are per read or write; this one is for the whole request.
            async with asyncio.timeout(timeout):
                sent = True
                request.sent_at = self.loop.time()
                reply = await client.embed(request.batch)
        except ProviderError as refusal:
            error = refusal
        except EmbedKitError as ours:
            error = ProviderError(str(ours))
        except TimeoutError:
            limit = f"{timeout} s" if timeout else "the client's own timeout"
            error = TimedOutError(f"{model} did not respond within {limit}. Increase timeout=.")
        except BaseException as foreign:  # only its type: the message may hold requests, keys and texts
            *_, (frame, line) = traceback.walk_tb(foreign.__traceback__)
            location = f"{PurePath(frame.f_code.co_filename).name}, line {line}"
            error = ProviderError(f"The request to {model} failed with {type(foreign).__name__} ({location})")
        else:
            if self.scheduler.owns(request):
                self.run_guarded(lambda: self.scheduler.replied(request, reply, self.loop.time()))
            self.pump()
            return
        error.unsent = error.unsent or not sent
        error.model = error.model or model
        error.provider = error.provider or model.partition(":")[0]
        if self.scheduler.owns(request):
            self.run_guarded(lambda: self.scheduler.failed(request, error, self.loop.time()))
        self.pump()

    async def _open_client(self) -> Client:
        """Return the client, which is created on a worker thread: the provider imports its SDK and reads files."""

        def connect() -> Client:
            with import_lock.lock:
                return self._connect()

        async with self._connecting:
            if self._client is None:
                self._client = await off_loop(connect, LOOKUPS)
            return self._client

    async def _refresh_key(self, secret: Secret, *, within: float | None) -> None:
        """Refresh an API key on a thread of its own, since user code may block."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._start_refresh(secret)
        # Shielded: the timeout of one request must not cancel the refresh for the others.
        try:
            async with asyncio.timeout(within):
                failure = await asyncio.shield(self._refreshing)
        except TimeoutError:
            raise TimedOutError(f"api_key: the function did not return within {within} s. Increase timeout=.") from None
        if failure is not None:
            raise copy.copy(failure)

    def _start_refresh(self, secret: Secret) -> asyncio.Future[ProviderError | None]:
        """Start a thread that refreshes an API key. Requests that come meanwhile share its result."""
        done: asyncio.Future[ProviderError | None] = self.loop.create_future()

        def finish(failure: ProviderError | None) -> None:
            if not done.done():
                done.set_result(failure)

        def refresh() -> None:
            failure: ProviderError | None = None
            try:
                secret.refresh()
            except ProviderError as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                self.loop.call_soon_threadsafe(finish, failure)

        start_thread(refresh, USER_CODE_THREAD)
        return done

    def _fail_all(self, error: Exception) -> None:
        """Fail all callers and start with a new scheduler. Replies to the old one's requests are ignored."""
        self.scheduler.stop()
        self.scheduler.ledger.mark_all_unconfirmed()
        for handle, end in self.scheduler.shared.end_all():
            self._end_lease(handle, end)
        self.scheduler = self._new_scheduler()
        waiting, self._waiting = self._waiting, set()
        for ticket in waiting:
            ticket.internal_error = ProviderError(
                f"Internal error in the engine ({type(error).__name__}). Please report it"
            )
            ticket.closed = True
            ticket.wake()

    def _new_scheduler(self) -> Scheduler:
        rng = random.Random()  # noqa: S311 - jitter
        return Scheduler(
            in_flight=self._in_flight,
            rng=rng,
            request_poll=lambda: self.loop.call_soon(self.pump),
            server=self._server,
        )

    @property
    def has_requests(self) -> bool:
        """True if a request is in flight, or a coordinator is asked for one."""
        return bool(self._tasks) or self.scheduler.shared.unanswered > 0

    @property
    def idle(self) -> bool:
        """True if nothing is pending and no look-up is open."""
        return not (self.scheduler.in_flight or self.scheduler.registry.items or self.scheduler.recent.lookups)

    async def aclose(self) -> None:
        """Close the client. A later request creates another."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
