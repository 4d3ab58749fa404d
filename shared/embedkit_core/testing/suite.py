"""What the conformance suites share: no case is lost without a word, and a missing pytest is one clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from embedkit_core.common.errors import ConfigurationError

try:
    import pytest
except ImportError:
    raise ImportError("the conformance suites of embedkit_core.testing run under pytest: pip install pytest") from None


class Suite:
    """Cases that a class named Test... takes on by being a subclass.

    None of them can be overridden or removed. One that cannot pass is marked, with the reason::

        @pytest.mark.xfail(reason="Acme answers in the order of its own choosing", strict=True)
        def test_rows_come_in_the_order_of_the_texts(self):
            super().test_rows_come_in_the_order_of_the_texts()
    """

    def test_no_case_is_overridden_or_removed(self) -> None:
        """A suite with a case that was rewritten proves nothing."""
        changed = [
            name
            for name, case in cases_of(type(self)).items()
            if getattr(type(self), name, None) is not case and not _is_expected_to_fail(getattr(type(self), name, None))
        ]
        assert not changed, (
            f"{type(self).__name__} overrides or removes {', '.join(changed)}: give its own cases other names, "
            'and mark one that cannot pass with @pytest.mark.xfail(reason="...", strict=True)'
        )

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        guard = Suite.test_no_case_is_overridden_or_removed
        if getattr(cls, guard.__name__, None) is not guard:
            raise TypeError(f"{cls.__name__} overrides {guard.__name__}, which sees to it that nothing is overridden")


def cases_of(suite: type) -> dict[str, object]:
    """Give the cases that a class has from the suites that ship, by name."""
    ours = [base for base in reversed(suite.__mro__) if base.__module__.startswith("embedkit_core.testing.")]
    return {name: case for base in ours for name, case in vars(base).items() if name.startswith("test_")}


def _is_expected_to_fail(case: object) -> bool:
    """Tell whether a case fails the run if it passes; a condition or another mark could let it pass all the same."""
    marks = [mark for mark in getattr(case, "pytestmark", []) if mark.name == "xfail"]
    return bool(marks) and all(
        mark.kwargs.get("reason")
        and mark.kwargs.get("strict") is True
        and not mark.args
        and "condition" not in mark.kwargs
        for mark in marks
    )


def skip(reason: str) -> NoReturn:
    """End a case that does not apply."""
    pytest.skip(reason)


def refusal(make: Callable[[], object], accepted: str) -> ConfigurationError:
    """Give the ConfigurationError that making something raises; fail with what its acceptance means."""
    try:
        make()
    except ConfigurationError as error:
        return error
    raise AssertionError(accepted)
