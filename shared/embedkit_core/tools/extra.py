"""Check of the packages that the tools need."""

from __future__ import annotations

from embedkit_core.common.errors import MissingExtraError


def check_installed(feature: str) -> None:
    """Check that the packages of the extra `tools` can be imported.

    The tools call it before they send anything, also for a chart that is drawn after the measurements.

    Raises:
        MissingExtraError: A package is missing.
    """
    try:
        import ir_measures  # noqa: F401
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(feature, "tools") from error
