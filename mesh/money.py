"""Credits as exact integers of micro-credits: parse and show them. Never a float."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

MICROS_PER_CREDIT = 1_000_000
MICROS_MAX = 10**15  # a thousand million credits: sums of thousands of these stay inside 64 bits


def parse_credits(text: str) -> int:
    """Return the micro-credits of a decimal number of credits; ValueError when it has more than six decimals."""
    try:
        micros = Decimal(text) * MICROS_PER_CREDIT
    except InvalidOperation:
        message = f"not a number of credits: {text!r}"
        raise ValueError(message) from None
    if not micros.is_finite() or micros != micros.to_integral_value():
        message = f"not a whole number of micro-credits: {text!r}"
        raise ValueError(message)
    return int(micros)


def show_credits(micros: int) -> str:
    """Return credits as a decimal text without needless zeros: 1500000 is "1.5"."""
    whole, part = divmod(abs(micros), MICROS_PER_CREDIT)
    decimals = f".{part:06d}".rstrip("0").rstrip(".")
    return f"{'-' if micros < 0 else ''}{whole}{decimals}"
