"""How numbers and lists are written for people, on both sides of the line between the halves with and without JAX."""

from collections.abc import Sequence


def clock(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def listed(items: Sequence[str], *, most: int) -> str:
    """The first `most` items and how many more there are: `a, b and 3 more`."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
