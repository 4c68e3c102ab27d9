"""How numbers are written for people, on both sides of the line between the halves with and without JAX."""


def clock(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
