"""Amounts of USD: exact arithmetic, display, and exact text for JSON. No I/O."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow

MILLION = Decimal(1_000_000)  # prices are USD per million tokens
CENTS = 2  # decimal places
THIS_MACHINE = "this machine"  # source of the price of a local model


def decimal_context(prec: int) -> Context:
    """Return a context with `prec` digits that depends on no setting of the application."""
    traps = [InvalidOperation, DivisionByZero, Overflow]
    return Context(prec, ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, capitals=1, clamp=0, flags=[], traps=traps)


# For all arithmetic with amounts: operators use the context of the thread, which an application may set to one digit.
USD = decimal_context(50)


def format_usd(usd: Decimal | None, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return an amount for display: cents, or two significant digits if these are finer; "unknown" for None.

    Examples: "$0", "$0.00000018", "$0.0036", "$0.012", "$0.50", "$1,234.50".

    Args:
        usd: The amount.
        rounding: A rounding mode of `decimal`: ROUND_CEILING for an upper bound, ROUND_FLOOR for what is left.
    """
    if usd is None:
        return "unknown"
    if not usd:
        return "$0"
    places = max(CENTS, 1 - usd.adjusted())
    digits = f"{usd.quantize(Decimal((0, (1,), -places)), rounding, USD).copy_abs():,f}"
    whole, _, fraction = digits.partition(".")
    return f"{'-' if usd < 0 else ''}${whole}.{fraction.rstrip('0'):0<{CENTS}}"


def exact_decimal(value: Decimal) -> str:
    """Return a number with all its digits, without an exponent and without trailing zeros."""
    digits = f"{value:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
