"""Base of the conformance suites: tests cannot be dropped unnoticed; a missing pytest is one clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from embedkit_core.common.errors import ConfigurationError

try:
    import pytest
except ImportError:
    raise ImportError("The conformance suites of embedkit_core.testing need pytest. Run: pip install pytest") from None


class Suite:
    """Base class of the suites, whose tests a subclass named Test... inherits.

    Tests cannot be overridden or removed. Mark a test that cannot pass, with a reason::

        @pytest.mark.xfail(reason="Acme returns vectors in random order", strict=True)
        def test_rows_are_in_the_order_of_the_texts(self):
            super().test_rows_are_in_the_order_of_the_texts()
    """

    def test_no_test_of_the_suite_is_overridden_or_removed(self) -> None:
        """Fail if the subclass changes a test of the suite."""
        changed = [
            name
            for name, test in suite_tests(type(self)).items()
            if getattr(type(self), name, None) is not test and not _is_expected_to_fail(getattr(type(self), name, None))
        ]
        assert not changed, (
            f"{type(self).__name__} overrides or removes {', '.join(changed)}. Use other names for your own tests, "
            'and mark a test that cannot pass with @pytest.mark.xfail(reason="...", strict=True).'
        )

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        guard = Suite.test_no_test_of_the_suite_is_overridden_or_removed
        if getattr(cls, guard.__name__, None) is not guard:
            raise TypeError(f"{cls.__name__} overrides {guard.__name__}, which ensures that no test is overridden.")


def suite_tests(suite: type) -> dict[str, object]:
    """Return the tests that a class inherits from the suites of this package, by name."""
    bases = [base for base in reversed(suite.__mro__) if base.__module__.startswith("embedkit_core.testing.")]
    return {name: test for base in bases for name, test in vars(base).items() if name.startswith("test_")}


def _is_expected_to_fail(test: object) -> bool:
    """Return True if a test is marked as an unconditional strict xfail with a reason."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "xfail"]
    return bool(marks) and all(
        mark.kwargs.get("reason")
        and mark.kwargs.get("strict") is True
        and not mark.args
        and "condition" not in mark.kwargs
        for mark in marks
    )


def skip(reason: str) -> NoReturn:
    """Skip the current test."""
    pytest.skip(reason)


def assert_rejected(make: Callable[[], object], message: str) -> None:
    """Fail with `message` unless `make` raises a ConfigurationError."""
    try:
        make()
    except ConfigurationError:
        return
    raise AssertionError(message)
