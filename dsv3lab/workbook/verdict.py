"""The verdict as a table: gate, observed, threshold, margin, source, status, for the terminal and for Markdown."""

from collections.abc import Sequence

from dsv3lab.workbook.gates import GateResult

HEADER = ("gate", "observed", "threshold", "margin", "source", "status")
_COLOURS = {"pass": "32", "waived": "33", "skipped": "33", "fail": "31", "error": "31", "missing": "31"}


def figure(value: float | None) -> str:
    """A number for a reader: four significant digits, no exponent where it can be avoided."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def row(result: GateResult) -> tuple[str, ...]:
    """The cells of one gate, in the order of `HEADER`."""
    status = result.status if result.severity == "block" else f"{result.status} (warns)"
    margin = figure(result.margin)
    if result.margin is not None and result.margin > 0:
        margin = f"+{margin}"
    threshold = f"{result.op} {figure(result.threshold)}"
    return (result.gate_id, figure(result.observed), threshold, margin, result.source, status)


def count(results: Sequence[GateResult]) -> str:
    """`7/8 gates pass (1 waived)`."""
    passed = sum(result.status == "pass" for result in results)
    others = [
        f"{sum(r.status == status for r in results)} {status}"
        for status in ("waived", "skipped", "fail", "error", "missing")
        if any(r.status == status for r in results)
    ]
    return f"{passed}/{len(results)} gates pass" + (f" ({', '.join(others)})" if others else "")


def table(
    results: Sequence[GateResult], *, title: str = "", next_command: str = "", width: int = 120, colour: bool = False
) -> str:
    """The verdict for a terminal.

    Args:
        results: the gates, in the order shown.
        title: a line above the table.
        next_command: what to run now; a line below the table.
        width: columns of the terminal; the column of sources gives way.
        colour: whether to colour the statuses with ANSI codes.
    """
    rows = [row(result) for result in results]
    widths = [max([len(name), *(len(cells[i]) for cells in rows)]) for i, name in enumerate(HEADER)]
    spare = width - sum(widths) - 2 * (len(widths) - 1)
    widths[4] = max(12, widths[4] + min(0, spare))
    lines = [title] if title else []
    lines += [_line(HEADER, widths), "  ".join("─" * w for w in widths)]
    for cells, result in zip(rows, results, strict=True):
        line = _line(cells, widths)
        if colour:
            line = line.removesuffix(cells[-1]) + f"\033[{_COLOURS[result.status]}m{cells[-1]}\033[0m"
        lines.append(line)
        for note in (result.message, result.waiver):
            if note:
                lines.append(f"  ↳ {note}")
    lines.append(count(results))
    if next_command:
        lines.append(f"next: {next_command}")
    return "\n".join(lines)


def markdown(results: Sequence[GateResult]) -> str:
    """The verdict as a Markdown table (for MLflow's note of a run)."""
    header = (*HEADER[:3], "unit", *HEADER[3:], "note")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for result in results:
        gate, observed, threshold, margin, source, status = row(result)
        cells = (gate, observed, threshold, result.unit, margin, source, status, result.waiver or result.message)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, "", count(results)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        cell = cell if len(cell) <= width else cell[: width - 1] + "…"
        parts.append(cell.rjust(width) if index in (1, 2, 3) else cell.ljust(width))
    return "  ".join(parts).rstrip()
