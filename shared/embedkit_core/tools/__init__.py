"""Compare, choose and benchmark models on your own texts."""

from embedkit_core.tools.bench import BenchResult, bench
from embedkit_core.tools.choose import Choice, choose
from embedkit_core.tools.compare import Candidate, Comparison, compare
from embedkit_core.tools.space_guard import SpaceGuard
from embedkit_core.tools.tasks import Task, load_beir, load_questions, self_retrieval

__all__ = [
    "BenchResult",
    "Candidate",
    "Choice",
    "Comparison",
    "SpaceGuard",
    "Task",
    "bench",
    "choose",
    "compare",
    "load_beir",
    "load_questions",
    "self_retrieval",
]
