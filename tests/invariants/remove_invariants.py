"""Check that each invariant has a test that fails if the code that ensures it is removed.

Run by hand: `make invariants` (several minutes), or `python tests/invariants/remove_invariants.py 2 9` for some of them.
Works on a copy of the tree. Exits non-zero if code can be removed without a failing test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = "shared/embedkit_core"


@dataclass(frozen=True)
class Invariant:
    """Code that ensures an invariant.

    Attributes:
        number: The invariant's number in CONTRIBUTING.md.
        file: The file, relative to the core package.
        code: The code; it occurs exactly once in the file.
        without: The replacement that breaks the invariant.
        test: The test that must fail then, relative to tests/.
    """

    number: int
    file: str
    code: str
    without: str
    test: str


INVARIANTS = [
    Invariant(
        1,
        "engine/scheduler/replies.py",
        "if vectors.shape[0] != n_texts:",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Invariant(
        1,
        "engine/scheduler/replies.py",
        "if not math.isfinite(total) and",
        "if False and",
        "invariants/test_invariants.py",
    ),
    Invariant(
        1,
        "providers/http/decoding.py",
        "    ordered[list(indices)] = vectors\n    return ordered",
        "    return vectors",
        "unit/scheduler/test_requests.py",
    ),
    Invariant(
        2,
        "engine/scheduler/scheduler.py",
        "item = self.registry.items.get(key)",
        "item = None",
        "invariants/test_invariants.py",
    ),
    Invariant(
        2,
        "engine/scheduler/scheduler.py",
        "recent = self.recent.get(key)",
        "recent = None",
        "invariants/test_invariants.py",
    ),
    Invariant(
        2,
        "calls/lookup.py",
        "            if self._open() or started:",
        "            self._open()\n            if False:",
        "unit/calls/test_incremental_lists.py",
    ),
    Invariant(
        3,
        "engine/scheduler/queues.py",
        "if picked and (alone or tokens + item.size > max_tokens):",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Invariant(
        3,
        "engine/scheduler/queues.py",
        "return min(MIN_TEXTS, self.capacity.texts), tokens",
        "return MIN_TEXTS, tokens",
        "invariants/test_invariants.py",
    ),
    Invariant(
        4, "engine/scheduler/dispatch.py", "while self.free_slots():", "while True:", "invariants/test_invariants.py"
    ),
    Invariant(
        4,
        "engine/scheduler/scheduler.py",
        "if self.dispatcher.free_slots() and self.dispatcher.may_send",
        "if self.dispatcher.may_send",
        "unit/scheduler/test_scheduler.py",
    ),
    Invariant(5, "engine/scheduler/scheduler.py", ", self.dispatcher.wake_at]", "]", "invariants/test_invariants.py"),
    Invariant(
        5,
        "engine/scheduler/registry.py",
        "        self.close_if_done(ticket)\n\n    def detach",
        "\n    def detach",
        "unit/scheduler/test_scheduler.py",
    ),
    Invariant(
        5,
        "engine/runtime/account.py",
        "            self._fail_all(error)",
        "            pass",
        "unit/scheduler/test_lifecycle.py",
    ),
    Invariant(
        6,
        "engine/scheduler/registry.py",
        "                self.drop(item)\n        for queue in",
        "                pass\n        for queue in",
        "invariants/test_invariants.py",
    ),
    Invariant(7, "costs/tokens.py", "given = upto", "given = 0", "invariants/test_invariants.py"),
    Invariant(
        7, "engine/scheduler/registry.py", "if ticket is item.payer:", "if False:", "unit/scheduler/test_coalescing.py"
    ),
    Invariant(
        8,
        "engine/scheduler/failures.py",
        "if 0 < len(bulk) < len(items):",
        "if False:",
        "unit/scheduler/test_scheduler.py",
    ),
    Invariant(
        8,
        "engine/scheduler/dispatch.py",
        "(with_bulk and must_send_bulk)",
        "False",
        "unit/scheduler/test_scheduler.py",
    ),
    Invariant(
        8,
        "engine/scheduler/scheduler.py",
        "                continue\n            self.dispatcher.count_turn()",
        "                pass\n            self.dispatcher.count_turn()",
        "unit/scheduler/test_scheduler.py",
    ),
    Invariant(
        8,
        "engine/scheduler/dispatch.py",
        "is_query = bool(with_queries) and",
        "is_query = not with_bulk and",
        "unit/scheduler/test_coalescing.py",
    ),
    Invariant(
        9,
        "engine/runtime/account.py",
        "self._writer.put(WriteJob(request, writes, self._rows_written, self._rows_stored))",
        "self._writer.put(WriteJob(request, writes, self._rows_written, self._rows_stored)); self.scheduler.committed(request)",
        "unit/scheduler/test_commit.py",
    ),
    Invariant(
        10,
        "engine/scheduler/failures.py",
        "if _failures_for(waiter, item) > waiter.ticket.max_retries",
        "if False",
        "unit/scheduler/test_retries.py",
    ),
    Invariant(
        10,
        "engine/scheduler/failures.py",
        "queue.verified = False\n            return [FailQueue(error)]",
        "queue.verified = False\n            return [Fail(items, error)]",
        "unit/scheduler/test_retries.py",
    ),
    Invariant(
        16,
        "coordination/sliding_window.py",
        "            (self.requests, 1.0, limits.requests_per_minute, demand.requests),\n",
        "",
        "unit/rate_limits/test_user_limits.py",
    ),
    Invariant(
        16,
        "coordination/sliding_window.py",
        "            (self.tokens, tokens, limits.tokens_per_minute, demand.tokens),\n",
        "",
        "invariants/test_invariants.py",
    ),
    Invariant(
        16,
        "engine/rate_limits/controller.py",
        "self._paused_until - now,",
        "",
        "unit/rate_limits/test_rate_controller.py",
    ),
    Invariant(
        17,
        "engine/scheduler/scheduler.py",
        "        self.registry.expire(now)",
        "        pass",
        "invariants/test_invariants.py",
    ),
    Invariant(
        15,
        "engine/scheduler/scheduler.py",
        "if request.queue.spec.limiter is not None:",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Invariant(
        15,
        "engine/scheduler/queues.py",
        "if self.awaiting_permit is not None:",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Invariant(
        11,
        "engine/scheduler/queues.py",
        "if self.in_flight and not self.verified:",
        "if False:",
        "unit/scheduler/test_retries.py",
    ),
    Invariant(
        12,
        "calls/call.py",
        "                self.leave()\n            return finish()",
        "                pass\n            return finish()",
        "unit/scheduler/test_lifecycle.py",
    ),
    Invariant(
        12,
        "calls/stream.py",
        "self._source_error = None  # a raised error refers to this frame\n                self._leave()",
        "self._source_error = None",
        "unit/calls/test_stream_lifecycle.py",
    ),
    Invariant(
        12,
        "calls/async_stream.py",
        "            chunk.leave()\n            task.cancel()",
        "            pass",
        "unit/calls/test_stream_lifecycle.py",
    ),
    Invariant(
        18,
        "costs/billing.py",
        "return all(budget.allows(tokens, self.price) for budget in self.budgets)",
        "return True",
        "invariants/test_invariants.py",
    ),
    Invariant(
        18,
        "engine/scheduler/funding.py",
        "sizes = [item.reserved or max_billed_tokens(item) for item in request.items]",
        "pass",
        "unit/scheduler/test_scheduler.py",
    ),
    Invariant(
        18,
        "engine/scheduler/funding.py",
        "item.payer.charge(item.payer.billing.mark_unconfirmed(item.reserved, tokens))",
        "pass",
        "invariants/test_invariants.py",
    ),
    Invariant(18, "engine/scheduler/funding.py", "status != 408 and", "True or", "invariants/test_invariants.py"),
    Invariant(
        18, "engine/scheduler/funding.py", "        self._request_poll()", "        pass", "unit/costs/test_budgets.py"
    ),
    Invariant(
        19,
        "coordination/rules.py",
        "found = transaction.claims(request.keys, request.since)",
        "found = Claims({}, [])",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        19,
        "engine/scheduler/shared_requests.py",
        "min((item.root.checked_at for item, key in zip(items, keys, strict=True) if key), default=math.inf),",
        'float("inf"),',
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        19,
        "engine/scheduler/shared_requests.py",
        "if request.unstored:",
        "if False:",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        19,
        "engine/scheduler/shared_requests.py",
        "is_late = now > at + grant.wait + _max_lateness(request)",
        "is_late = False",
        "unit/scheduler/test_shared_requests.py",
    ),
    Invariant(
        20,
        "coordination/rules.py",
        "wait = max(paused, _permit_wait(transaction, request, account, state, permit_tokens))",
        "wait = paused",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        20,
        "coordination/sliding_window.py",
        "if new_at - at > RESOLUTION:",
        "if False:",
        "unit/coordination/test_sliding_window.py",
    ),
    Invariant(
        20,
        "engine/scheduler/shared_requests.py",
        "now <= at + _max_lateness(request)",
        "True",
        "unit/scheduler/test_shared_requests.py",
    ),
    Invariant(
        21,
        "costs/amounts.py",
        "return (usd is None or amount.nano_usd <= usd) and (tokens is None or amount.tokens <= tokens)",
        "return True",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        21,
        "coordination/rules.py",
        "transaction.save_budget(budget._replace(held=budget.held.minus(reserved), lost=budget.lost.plus(reserved)))",
        "transaction.save_budget(budget._replace(held=budget.held.minus(reserved)))",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        21,
        "coordination/rules.py",
        "new = billed.beyond(known.billed)",
        "new = billed",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        19,
        "coordination/redis/lua/exchange.lua",
        "elseif next(stored) then",
        "elseif false then",
        "invariants/test_redis_invariants.py",
    ),
    Invariant(
        20,
        "coordination/redis/lua/exchange.lua",
        "local wait = math.max(paused, has_limits and permit_wait(model, one, tokens) or 0)",
        "local wait = paused",
        "invariants/test_redis_invariants.py",
    ),
    Invariant(
        20,
        "coordination/redis/lua/state.lua",
        "    take(model, sent_at, 1, tokens)\n",
        "",
        "unit/coordination/test_redis_rules.py",
    ),
    Invariant(
        21,
        "coordination/redis/lua/state.lua",
        "if limit and amount[unit] > limit - budget.spent[unit] - budget.lost[unit] - budget.held[unit] then",
        "if false then",
        "invariants/test_redis_invariants.py",
    ),
    Invariant(
        21,
        "coordination/redis/lua/state.lua",
        "if last and tonumber(last) >= attempt then",
        "if false then",
        "unit/coordination/test_redis_coordinator.py",
    ),
    Invariant(
        22,
        "engine/scheduler/shared_requests.py",
        "elif item.waiters and not self.stopped:",
        "elif False:",
        "invariants/test_coordination_invariants.py",
    ),
    Invariant(
        22,
        "engine/scheduler/shared_requests.py",
        "(ended is None or one.lease in ended)",
        "one.lease in (ended or ())",
        "unit/scheduler/test_shared_requests.py",
    ),
]


def passes_without(invariant: Invariant, tree: Path) -> bool:
    """Return True if the invariant's test still passes without its code."""
    path = tree / CORE / invariant.file
    original = path.read_text(encoding="utf-8")
    if original.count(invariant.code) != 1:
        found = original.count(invariant.code)
        raise SystemExit(
            f"Invariant {invariant.number}: {invariant.code!r} occurs {found} times in {invariant.file} instead of once"
        )
    path.write_text(original.replace(invariant.code, invariant.without), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=60", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, f"tests/{invariant.test}"],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree / "shared"), "INVARIANT_REMOVED": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original, encoding="utf-8")
    return run.returncode == 0


def main() -> int:
    """Remove the code of each invariant in turn and report."""
    chosen = {int(number) for number in sys.argv[1:]}
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", ".demo", "__pycache__", ".hypothesis")
        )
        for invariant in INVARIANTS:
            if chosen and invariant.number not in chosen:
                continue
            passed = passes_without(invariant, tree)
            unnoticed += passed
            verdict = "NOT NOTICED" if passed else "fails, as expected"
            print(
                f"invariant {invariant.number:2}  {invariant.file:24} {invariant.code.strip().splitlines()[0]!r:75} {invariant.test}: {verdict}",
                flush=True,
            )
    print(f"{unnoticed} removals were not noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main())
