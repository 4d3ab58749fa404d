"""The shell around one account's scheduler: its client, its tasks, its timer. Lives on the loop thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import random
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from embedkit_core.common.errors import EmbedKitError, ProviderError, TimedOutError
from embedkit_core.common.fork_safety import import_lock
from embedkit_core.engine.runtime.cache_writer import CacheWriter, WriteJob
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from embedkit_core.engine.rate_limits.controller import RateController
    from embedkit_core.providers.base import Client
    from embedkit_core.providers.secrets import Secret


USER_CODE_THREAD = "embedkit-limiter"  # what of the user's waits: rate limiters, functions that give keys


class Account:
    """Sends what the scheduler decides, for one provider, endpoint and credential.

    `connect` makes the client, on the loop thread, when there is a first request to send.
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
        secret: Secret | None = None,
        endpoint: str = "",
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self._secret = secret if secret is not None and secret.source is not None else None
        self.users = 0
        self.idle_since = loop.time()
        self._in_flight = in_flight
        self.scheduler = self._new_scheduler()
        self._connect = connect
        self._client: Client | None = None
        self.loop = loop
        self._call = call
        self._writer = writer
        self._refreshing: asyncio.Future[ProviderError | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[Ticket] = set()

    # For caller threads

    def open_lookup(self, lookup: object) -> int:
        """Keep rows that are completed while a caller reads the cache. Return how often any were completed before."""
        return self.scheduler.recent.open(lookup)

    def close_lookup(self, lookup: object) -> None:
        """Keep nothing more for a caller's look-up."""
        self.scheduler.recent.close(lookup)

    def known_rate_controller(self, model: str) -> RateController | None:
        """Return the rate controller of a model that was used lately."""
        return self.scheduler.dispatcher.known_rate_controller(model)

    # For the loop thread

    def submit(
        self, ticket: Ticket, lane: RequestSpec, wants: Sequence[tuple[bytes, str, int]], lookup: object
    ) -> None:
        """Take on a ticket; its look-up of the cache ends here."""
        self._waiting.add(ticket)
        try:
            self.scheduler.submit(ticket, lane, wants, self.loop.time())
        finally:
            self.close_lookup(lookup)

    def withdraw(self, ticket: Ticket, lookup: object) -> None:
        """Let a caller leave."""
        self.close_lookup(lookup)
        self._waiting.discard(ticket)
        self.scheduler.withdraw(ticket)

    def _rows_written(self, request: Request) -> None:
        """Accept on the writer thread that the rows of a request are in their caches."""
        self._call(self, partial(self._committed, request))

    def _committed(self, request: Request) -> None:
        if self.scheduler.owns(request):
            self.scheduler.committed(request)

    def run_guarded(self, event: Callable[[], None]) -> None:
        """Let the scheduler take in an event; a defect of ours must not leave callers waiting for ever."""
        try:
            event()
        except Exception as error:
            self._fail_all(error)

    def pump(self) -> None:
        """Do what the scheduler has decided, until it has nothing more for now."""
        self.run_guarded(self._pump)

    def _pump(self) -> None:
        while self._pump_once():
            pass

    def _pump_once(self) -> bool:
        actions = self.scheduler.poll(self.loop.time())
        for request in actions.acquire:
            threading.Thread(
                target=self._acquire_permit,
                args=(request, request.queue.rate_controller.tokens(request.size)),
                name=USER_CODE_THREAD,
                daemon=True,
            ).start()
        for request in actions.send:
            task = self.loop.create_task(self._send(request), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        at_once = False
        for request in actions.commit:
            if keep := request.take_writes():
                self._writer.put(WriteJob(request, keep, partial(self._rows_written, request)))
            else:
                self.scheduler.committed(request)
                at_once = True
        for ticket in actions.wake:
            self._waiting.discard(ticket)
            ticket.wake()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if actions.wake_at is None else self.loop.call_at(actions.wake_at, self.pump)
        return at_once

    def _acquire_permit(self, request: Request, tokens: int) -> None:
        """Wait for a rate limiter, on a thread of its own: it is the user's code, and may take its time."""
        gate = request.queue.spec.limiter
        assert gate is not None
        barred: ProviderError | None = None
        try:
            gate.acquire(tokens)
        except ProviderError as error:
            barred = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self.loop.call_soon_threadsafe(self._permit_acquired, request, barred)

    def _permit_acquired(self, request: Request, barred: ProviderError | None) -> None:
        if self.scheduler.owns(request):
            scheduler = self.scheduler
            self.run_guarded(
                lambda: scheduler.limiter_failed(request, barred) if barred else scheduler.permit_granted(request)
            )
        self.pump()

    async def _send(self, request: Request) -> None:
        model, timeout = request.queue.spec.model, request.batch.timeout
        error: ProviderError
        sent = False
        try:
            if self._secret is not None:
                await self._refresh_key(self._secret, within=timeout)
            if self._client is None:
                with import_lock.lock:  # an SDK, most likely
                    self._client = self._connect()
            # The client's own timeouts are per read or write; this one is for the whole.
            async with asyncio.timeout(timeout):
                sent = True
                reply = await self._client.embed(request.batch)
        except ProviderError as refusal:
            error = refusal
        except EmbedKitError as ours:
            error = ProviderError(str(ours))
        except TimeoutError:
            error = TimedOutError(f"{model} did not answer in {timeout or 'its own'} s; timeout= gives it longer")
        except BaseException as foreign:  # it may hold requests, keys and texts: only its type goes on
            where = traceback.extract_tb(foreign.__traceback__)[-1]
            place = f"{PurePath(where.filename).name}, line {where.lineno}"
            error = ProviderError(f"{model}: the request failed with {type(foreign).__name__} ({place})")
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

    async def _refresh_key(self, secret: Secret, *, within: float | None) -> None:
        """Have a key that changes asked for, on a thread of its own: it is the user's code, and may take its time."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._start_refresh(secret)
        # Shielded: one request's timeout must not end the others' wait.
        try:
            async with asyncio.timeout(within):
                flaw = await asyncio.shield(self._refreshing)
        except TimeoutError:
            raise TimedOutError(f"the function that gives the key did not return in {within} s") from None
        if flaw is not None:
            raise copy.copy(flaw)

    def _start_refresh(self, secret: Secret) -> asyncio.Future[ProviderError | None]:
        """Start a thread that asks; requests that come meanwhile share the answer."""
        done: asyncio.Future[ProviderError | None] = self.loop.create_future()

        def tell(flaw: ProviderError | None) -> None:
            if not done.done():
                done.set_result(flaw)

        def ask() -> None:
            flaw: ProviderError | None = None
            try:
                secret.refresh()
            except ProviderError as error:
                flaw = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                self.loop.call_soon_threadsafe(tell, flaw)

        contextvars.Context().run(threading.Thread(target=ask, name=USER_CODE_THREAD, daemon=True).start)
        return done

    def _fail_all(self, error: Exception) -> None:
        """Fail all callers and begin anew: what the old scheduler has under way is not listened to any more."""
        self.scheduler.stop()
        self.scheduler.ledger.mark_all_unconfirmed()
        self.scheduler = self._new_scheduler()
        waiting, self._waiting = self._waiting, set()
        for ticket in waiting:
            ticket.internal_error = ProviderError(
                f"internal error in the engine ({type(error).__name__}); please report it"
            )
            ticket.closed = True
            ticket.wake()

    def _new_scheduler(self) -> Scheduler:
        rng = random.Random()  # noqa: S311 - jitter
        return Scheduler(in_flight=self._in_flight, rng=rng, request_poll=lambda: self.loop.call_soon(self.pump))

    @property
    def has_requests(self) -> bool:
        """Tell whether a request is in the air."""
        return bool(self._tasks)

    @property
    def idle(self) -> bool:
        """Tell whether nothing is under way."""
        return not (self.scheduler.in_flight or self.scheduler.registry.items or self.scheduler.recent.lookups)

    async def aclose(self) -> None:
        """Close the client; a later request makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
