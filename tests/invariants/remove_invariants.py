"""Show that each law has a test that fails without it: take the line away, run the test, put nothing back.

Run by hand: `make laws` (several minutes), or `python tests/invariants/remove_invariants.py 2 9` for some only.
Works on a copy of the tree; exits non-zero if a law can be removed without a test noticing.
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
class Law:
    """A law by its number in CONTRIBUTING.md, the code that keeps it, what stands there without it, and the test."""

    number: int
    file: str
    code: str
    without: str
    test: str


LAWS = [
    Law(
        1,
        "engine/scheduler/replies.py",
        "if vectors.shape[0] != n_texts:",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Law(
        1,
        "engine/scheduler/replies.py",
        "if not math.isfinite(total) and",
        "if False and",
        "invariants/test_invariants.py",
    ),
    Law(
        1,
        "providers/http/decoding.py",
        "    ordered[list(indices)] = vectors\n    return ordered",
        "    return vectors",
        "unit/scheduler/test_requests.py",
    ),
    Law(
        2,
        "engine/scheduler/scheduler.py",
        "item = self.registry.items.get(key)",
        "item = None",
        "invariants/test_invariants.py",
    ),
    Law(
        2,
        "engine/scheduler/scheduler.py",
        "recent = self.recent.get(key)",
        "recent = None",
        "invariants/test_invariants.py",
    ),
    Law(
        2,
        "calls/lookup.py",
        "            if self._open() or started:",
        "            self._open()\n            if False:",
        "unit/calls/test_incremental_lists.py",
    ),
    Law(
        3,
        "engine/scheduler/queues.py",
        "if picked and (alone or tokens + item.size > most_tokens):",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Law(
        3,
        "engine/scheduler/queues.py",
        "return min(MIN_TEXTS, self.capacity.texts), tokens",
        "return MIN_TEXTS, tokens",
        "invariants/test_invariants.py",
    ),
    Law(4, "engine/scheduler/dispatch.py", "while self.free_slots():", "while True:", "invariants/test_invariants.py"),
    Law(
        4,
        "engine/scheduler/scheduler.py",
        "if self.dispatcher.free_slots() and self.dispatcher.may_send",
        "if self.dispatcher.may_send",
        "unit/scheduler/test_scheduler.py",
    ),
    Law(5, "engine/scheduler/scheduler.py", ", self.dispatcher.wake_at]", "]", "invariants/test_invariants.py"),
    Law(
        5,
        "engine/scheduler/scheduler.py",
        "        self.registry.close_if_done(ticket)\n\n    def _take_recent",
        "\n    def _take_recent",
        "unit/scheduler/test_scheduler.py",
    ),
    Law(
        5,
        "engine/runtime/account.py",
        "            self._fail_all(error)",
        "            pass",
        "unit/scheduler/test_lifecycle.py",
    ),
    Law(
        6,
        "engine/scheduler/registry.py",
        "                self.drop(item)\n        for queue in",
        "                pass\n        for queue in",
        "invariants/test_invariants.py",
    ),
    Law(7, "costs/tokens.py", "given = upto", "given = 0", "invariants/test_invariants.py"),
    Law(
        7, "engine/scheduler/scheduler.py", "if ticket is item.payer:", "if False:", "unit/scheduler/test_coalescing.py"
    ),
    Law(
        8,
        "engine/scheduler/failures.py",
        "if 0 < len(bulk) < len(items):",
        "if False:",
        "unit/scheduler/test_scheduler.py",
    ),
    Law(
        8,
        "engine/scheduler/dispatch.py",
        "(bulk and self._consecutive_queries >= MAX_CONSECUTIVE_QUERIES)",
        "False",
        "invariants/test_invariants.py",
    ),
    Law(
        8,
        "engine/scheduler/scheduler.py",
        "                continue\n            self.dispatcher.count_turn()",
        "                pass\n            self.dispatcher.count_turn()",
        "unit/scheduler/test_scheduler.py",
    ),
    Law(
        8,
        "engine/scheduler/dispatch.py",
        "queries = bool(urgent) and",
        "queries = not bulk and",
        "unit/scheduler/test_coalescing.py",
    ),
    Law(
        9,
        "engine/runtime/account.py",
        "self._writer.put(WriteJob(flight, keep, partial(self._rows_written, flight)))",
        "self._writer.put(WriteJob(flight, keep, partial(self._rows_written, flight))); self.scheduler.committed(flight)",
        "unit/scheduler/test_commit.py",
    ),
    Law(
        10,
        "engine/scheduler/failures.py",
        "if _failures_for(waiter, item) > waiter.ticket.max_retries",
        "if False",
        "unit/scheduler/test_retries.py",
    ),
    Law(
        10,
        "engine/scheduler/failures.py",
        "queue.verified = False\n            return [FailQueue(error)]",
        "queue.verified = False\n            return [Fail(items, error)]",
        "unit/scheduler/test_retries.py",
    ),
    Law(
        16,
        "engine/rate_limits/user_limits.py",
        "max(pair.requests.wait(1, now), ",
        "max(0.0, ",
        "unit/rate_limits/test_rate_controller.py",
    ),
    Law(
        16,
        "engine/rate_limits/user_limits.py",
        ", pair.tokens.wait(tokens, now))",
        ", 0.0)",
        "unit/rate_limits/test_rate_controller.py",
    ),
    Law(
        16,
        "engine/rate_limits/controller.py",
        "self._paused_until - now,",
        "",
        "unit/rate_limits/test_rate_controller.py",
    ),
    Law(
        17,
        "engine/scheduler/scheduler.py",
        "        self._expire(now)",
        "        pass",
        "invariants/test_invariants.py",
    ),
    Law(
        15,
        "engine/scheduler/scheduler.py",
        "if request.queue.spec.limiter is not None:",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Law(
        15,
        "engine/scheduler/queues.py",
        "if self.awaiting_permit is not None:",
        "if False:",
        "invariants/test_invariants.py",
    ),
    Law(
        11,
        "engine/scheduler/queues.py",
        "if self.in_flight and not self.verified:",
        "if False:",
        "unit/scheduler/test_retries.py",
    ),
    Law(
        12,
        "calls/call.py",
        "                self.leave()\n            return finish()",
        "                pass\n            return finish()",
        "unit/scheduler/test_lifecycle.py",
    ),
    Law(
        12,
        "calls/stream.py",
        "self._source_error = None  # a raised error refers to this frame: break the cycle\n                self._leave()",
        "self._source_error = None",
        "unit/calls/test_stream_lifecycle.py",
    ),
    Law(
        12,
        "calls/async_stream.py",
        "            chunk.leave()\n            task.cancel()",
        "            pass",
        "unit/calls/test_stream_lifecycle.py",
    ),
    Law(
        18,
        "costs/billing.py",
        "return all(budget.allows(tokens, self.price) for budget in self.budgets)",
        "return True",
        "invariants/test_invariants.py",
    ),
    Law(
        18,
        "engine/scheduler/funding.py",
        "sizes = [item.reserved or max_billed_tokens(item) for item in flight.items]",
        "pass",
        "unit/scheduler/test_scheduler.py",
    ),
    Law(
        18,
        "engine/scheduler/funding.py",
        "item.payer.charge(item.payer.billing.mark_unconfirmed(item.reserved, most))",
        "pass",
        "invariants/test_invariants.py",
    ),
    Law(18, "engine/scheduler/funding.py", "status != 408 and", "True or", "invariants/test_invariants.py"),
    Law(
        18, "engine/scheduler/funding.py", "        self._request_poll()", "        pass", "unit/costs/test_budgets.py"
    ),
]


def holds_without(law: Law, tree: Path) -> bool:
    """Tell whether the law's test still passes when its code is gone."""
    path = tree / CORE / law.file
    original = path.read_text(encoding="utf-8")
    if original.count(law.code) != 1:
        raise SystemExit(f"law {law.number}: {law.code!r} stands {original.count(law.code)} times in {law.file}")
    path.write_text(original.replace(law.code, law.without), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=60", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, f"tests/{law.test}"],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree / "shared"), "LAW_REMOVED": "1"},
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
    """Remove each law in turn and report."""
    chosen = {int(number) for number in sys.argv[1:]}
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", ".demo", "__pycache__", ".hypothesis")
        )
        for law in LAWS:
            if chosen and law.number not in chosen:
                continue
            passed = holds_without(law, tree)
            unnoticed += passed
            verdict = "NOT NOTICED" if passed else "fails, as it must"
            print(
                f"law {law.number:2}  {law.file:24} {law.code.strip().splitlines()[0]!r:75} {law.test}: {verdict}",
                flush=True,
            )
    print(f"{unnoticed} removals were not noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main())
