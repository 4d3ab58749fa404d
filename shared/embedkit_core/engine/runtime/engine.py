"""The engine: one daemon thread with an event loop per process, and the calls into it from other threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.common.fork_safety import holds_lock
from embedkit_core.common.threads import TIERS_THREAD, WakeFlag, start_thread
from embedkit_core.coordination.opening import CoordinatorHandle
from embedkit_core.engine.runtime.account import USER_CODE_THREAD, Account
from embedkit_core.engine.runtime.cache_writer import CacheWriter
from embedkit_core.engine.runtime.coordinator_thread import CoordinatorThread
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket

if TYPE_CHECKING:
    from embedkit_core.providers.base import Provider

EXIT_GRACE_SECONDS = 10.0  # at exit, for requests in flight: they are billed anyway
CLOSE_SECONDS = 2.0  # at exit, for closing clients and for the loop
IDLE_SECONDS = 30.0  # until the client of an account without embedders is closed
ALIVE_SECONDS = 0.5  # after which a caller that waits looks whether the loop has ended
T = TypeVar("T")


class Engine:
    """One loop thread, one writer thread, and an account for each provider, endpoint and credential.

    Callers append to an inbox and wake the loop; there is no lock.
    """

    def __init__(self) -> None:
        """Start the threads.

        Raises:
            EmbedKitError: A thread cannot be started.
        """
        self._inbox: deque[tuple[Account, Callable[[], None]]] = deque()
        self._accounts: dict[Any, Account] = {}
        self._coordinators: dict[CoordinatorHandle, CoordinatorThread] = {}
        self._closing = False
        self._loop = asyncio.new_event_loop()
        try:  # both threads now: without a writer, rows that were paid for could not be committed
            self._writer = CacheWriter()
            self.thread = start_thread(self._run, "embedkit-engine")
        except EmbedKitError:
            self._loop.close()
            raise

    # For caller threads

    def account(self, provider: Provider) -> Account:
        """Return the account of a provider's settings, created on first use."""
        account = self._accounts.get(provider.account)
        if account is None:
            # setdefault is atomic: concurrent threads get the same account.
            account = self._accounts.setdefault(
                provider.account,
                Account(
                    provider.account,
                    connect=provider.connect,
                    in_flight=provider.limits.in_flight,
                    loop=self._loop,
                    call=self.call,
                    writer=self._writer,
                    coordinator=self._coordinator_thread,
                    secret=provider.secret,
                    endpoint=provider.endpoint,
                    server=urlsplit(provider.url or "").netloc or provider.name,
                ),
            )
        return account

    def known_account(self, provider: Provider) -> Account | None:
        """Return the account of a provider's settings, None if it was not used recently."""
        return self._accounts.get(provider.account)

    def submit(
        self,
        account: Account,
        ticket: Ticket,
        spec: RequestSpec,
        texts: Sequence[tuple[bytes, str, int]],
        too_long: Mapping[int, int],
        lookup: object,
    ) -> None:
        """Submit a ticket, with the arguments of `Scheduler.submit`.

        Raises:
            EmbedKitError: The interpreter is shutting down, or a signal handler has interrupted the library.
        """
        if self._closing:
            raise EmbedKitError("The interpreter is shutting down. No more requests are sent")
        _refuse_interrupted("Embed new texts")
        self.call(account, lambda: account.submit(ticket, spec, texts, too_long, lookup))

    def withdraw(self, account: Account, ticket: Ticket, lookup: object) -> None:
        """Remove a caller, also if its ticket is complete or was never submitted."""
        self.call(account, lambda: account.withdraw(ticket, lookup))

    def join(self, account: Account) -> None:
        """Count an embedder that uses an account."""

        def join() -> None:
            self._accounts.setdefault(account.name, account)
            account.users += 1

        self.call(account, join)

    def leave(self, account: Account) -> None:
        """Count an embedder that was collected. Safe in a finalizer, since it only appends."""
        self._inbox.append((account, lambda: self._release(account)))

    def close_account(self, account: Account) -> None:
        """Count an embedder that was closed, and close the client if it was the last one."""
        if account.loop is not self._loop:  # the parent's, in a forked child: its connections must stay open
            return

        def close() -> None:
            self._release(account)
            if account.users <= 0 and account.idle:
                self._retire(account)

        self.call(account, close)

    def call(self, account: Account, action: Callable[[], None]) -> None:
        """Schedule an action of an account on the loop thread."""
        self._inbox.append((account, action))
        self.post(self._drain)  # always: an interrupt could leave a flag "already woken" behind

    def run(self, action: Callable[[], T]) -> T:
        """Return what a function returns that runs on the loop thread, such as a change of budgets. Wait for it.

        A caller that is interrupted meanwhile does not know whether it has run. If the loop has ended, at exit or in a
        forked child, it runs on the thread of the caller.

        Raises:
            EmbedKitError: A signal handler has interrupted the library.
        """
        if threading.current_thread() is self.thread:
            return action()
        _refuse_interrupted("Do this")
        done, results = WakeFlag(), list[T]()
        errors: list[BaseException] = []

        def perform() -> None:
            try:
                results.append(action())
            except BaseException as error:
                errors.append(error)
            done.set()

        self.post(perform)
        while not done.wait(ALIVE_SECONDS):
            if not self.thread.is_alive() and not done.is_set():
                return action()
        if errors:
            raise errors.pop()
        return results.pop()

    def post(self, action: Callable[[], object]) -> None:
        """Schedule a function on the loop thread, after those that were scheduled before."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(action)

    def inspect_accounts(self, action: Callable[[list[Account]], None]) -> None:
        """Schedule a function of all accounts on the loop thread."""
        self.post(lambda: action(list(self._accounts.values())))

    def owns(self, thread: threading.Thread) -> bool:
        """Return True if a thread belongs to the engine."""
        is_coordinator = any(thread is coordinator.thread for coordinator in list(self._coordinators.values()))
        return (
            thread.name in (USER_CODE_THREAD, TIERS_THREAD)
            or thread in (self.thread, self._writer.thread)
            or is_coordinator
        )

    # On the loop thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_later(IDLE_SECONDS, self._sweep)
        self._loop.run_forever()

    def _drain(self) -> None:
        touched: dict[Account, None] = {}
        while self._inbox:
            account, action = self._inbox.popleft()
            account.run_guarded(action)
            touched[account] = None
        for account in touched:
            account.pump()

    def _coordinator_thread(self, handle: CoordinatorHandle) -> CoordinatorThread:
        """Return the thread of a coordinator, started on first use."""
        thread = self._coordinators.get(handle)
        if thread is None:
            thread = self._coordinators[handle] = CoordinatorThread(handle)
        return thread

    def _release(self, account: Account) -> None:
        account.users -= 1
        account.idle_since = self._loop.time()

    def _retire(self, account: Account) -> None:
        if self._accounts.get(account.name) is account:
            del self._accounts[account.name]
        self._loop.create_task(account.aclose(), context=contextvars.Context())

    def _sweep(self) -> None:
        self._drain()
        for account in list(self._accounts.values()):
            if account.users <= 0 and account.idle and self._loop.time() - account.idle_since > IDLE_SECONDS:
                self._retire(account)
        for handle, coordinator in list(self._coordinators.items()):
            if coordinator.is_idle and self._loop.time() - coordinator.used_at > IDLE_SECONDS:
                self._coordinators.pop(handle).stop(timeout=0.0)
        self._loop.call_later(IDLE_SECONDS, self._sweep)

    # At exit

    def shut_down(self) -> None:
        """Send no more requests, wait for those in flight, write their rows to the caches, and end the threads."""
        self._closing = True
        self._wait_for(self._settle(), EXIT_GRACE_SECONDS)
        self._writer.stop(EXIT_GRACE_SECONDS)
        self._wait_for(self._accept_written(), CLOSE_SECONDS)
        for coordinator in list(self._coordinators.values()):
            coordinator.stop(CLOSE_SECONDS)
        self._wait_for(self._close_clients(), CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.thread.join(CLOSE_SECONDS)
        if not self.thread.is_alive():
            self._loop.close()

    def _wait_for(self, work: Coroutine[Any, Any, None], seconds: float) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with contextlib.suppress(TimeoutError, RuntimeError):
            future.result(seconds)
        future.cancel()

    async def _settle(self) -> None:
        self._drain()
        for account in self._accounts.values():
            account.scheduler.stop()
            account.pump()
        while any(account.has_requests for account in self._accounts.values()):  # noqa: ASYNC110 - once, at exit
            await asyncio.sleep(0.01)

    async def _accept_written(self) -> None:
        """Accept the rows that were written last, and end their leases."""
        self._drain()

    async def _close_clients(self) -> None:
        await asyncio.gather(*(a.aclose() for a in self._accounts.values()), return_exceptions=True)


def _refuse_interrupted(action: str) -> None:
    """Check that no signal handler or finalizer has interrupted the library on this thread.

    Raises:
        EmbedKitError: One has, and the engine may wait for a lock that this thread holds.
    """
    if holds_lock():
        raise EmbedKitError(
            f"A signal handler or finalizer has interrupted this library where it cannot wait for a reply. {action} "
            "outside of it, for example after it has set a flag."
        )
