"""Plain tables that fit a terminal."""

from collections.abc import Collection, Sequence

NARROWEST = 10


def grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[int],
    width: int,
    first: Collection[int] = (),
) -> list[str]:
    """The lines of a table: a header, a rule, the rows.

    Args:
        header: names of the columns.
        rows: cells, as many in each row as there are columns.
        left: the columns of text, which stand left and give way when `width` is too small, the widest before the others.
        width: columns of the terminal.
        first: those of them that give way before all others.
    """
    lines = [[" ".join(str(cell).split()) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[index]) for row in lines) for index in range(len(header))]
    for giving in (first, left):
        while sum(widths) + 2 * (len(widths) - 1) > width:
            widest = max(giving, key=lambda index: widths[index], default=0)
            if widths[widest] <= NARROWEST or not giving:
                break
            widths[widest] -= 1
    cut = [
        [cell if len(cell) <= size else cell[: size - 1] + "…" for cell, size in zip(row, widths, strict=True)]
        for row in lines
    ]
    shown = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cut
    ]
    return [shown[0].rstrip(), "  ".join("─" * size for size in widths), *(line.rstrip() for line in shown[1:])]
