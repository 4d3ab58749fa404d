"""Who watches calls: told when a call or a stream begins and ends, on the caller's side; nobody, unless asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from embedkit_core.types import InputType, Usage

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder
    from embedkit_core.roles import Role

logger = logging.getLogger("embedkit_core")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a call at its beginning; a stream has no `texts`, the provider's own host no `address`."""

    provider: str
    model: str
    address: str
    input_type: InputType
    dimensions: int | None
    dtype: str
    texts: list[str] | None


class Watch(Protocol):
    """One call, watched."""

    def end(self, usage: Usage, error: str | None) -> None:
        """Take in what it took, and the name of the error that it ended with."""


class Watcher(Protocol):
    """What wants to know of calls."""

    def begin(self, facts: Facts) -> Watch:
        """Take in that one begins."""


watchers: tuple[Watcher, ...] = ()


def add_watcher(watcher: Watcher) -> None:
    """Have a watcher told of each call that begins from now on."""
    global watchers
    watchers = (*watchers, watcher)


def remove_watcher(watcher: Watcher) -> None:
    """Tell a watcher of no further call."""
    global watchers
    watchers = tuple(one for one in watchers if one is not watcher)


class Watched:
    """A call with those who watch it; ends once. A watcher that fails harms nobody."""

    __slots__ = ("_watches",)

    def __init__(self, watches: list[Watch]) -> None:
        self._watches = watches

    def end(self, usage: Usage, error: str | None = None) -> None:
        """Tell that it has ended; of an exception that is on its way the name is known."""
        watches, self._watches = self._watches, []
        raised = sys.exc_info()[1]
        if error is None and raised is not None and not isinstance(raised, GeneratorExit):  # a stream may be left
            error = type(raised).__name__
        for watch in watches:
            try:
                watch.end(usage, error)
            except Exception as failure:
                logger.warning("what watches calls failed with %s", type(failure).__name__)


def watched(owner: Embedder, role: Role, texts: Iterable[str] | None) -> Watched | None:
    """Begin to watch a call of an embedder's, None where nobody does."""
    if not watchers:
        return None
    provider = owner.provider
    facts = Facts(
        provider=provider.telemetry_name,
        model=provider.model,
        address=provider.address or provider.endpoint,
        input_type=role.input_type,
        dimensions=owner.dimensions,
        dtype=role.form.dtype,
        texts=[text for text in texts if isinstance(text, str)] if isinstance(texts, list) else None,
    )
    watches: list[Watch] = []
    for watcher in watchers:
        try:
            watches.append(watcher.begin(facts))
        except Exception as failure:
            logger.warning("what watches calls failed with %s", type(failure).__name__)
    return Watched(watches)
