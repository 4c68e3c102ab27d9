"""One self-contained HTML page for a phase execution: readable on a telephone, in print and offline."""

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import RunConfig, plain
from dsv3lab.workbook import gates, verdict
from dsv3lab.workbook.files import read_json, write_atomic
from dsv3lab.workbook.gates import GateResult
from dsv3lab.workbook.promotion import decide
from dsv3lab.workbook.record import PhaseRecord, StageOutcome

NAME = "report.html"

_STYLE = """
:root{--ink:#1a1a1a;--soft:#5c5c5c;--line:#d8d8d8;--paper:#fff;--good:#00694d;--bad:#b03a00;--mid:#7a5200}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:60rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);
 background:var(--paper)}
h1{font-size:1.6rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.2rem;margin:2em 0 .5em;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4em 0 .3em}
p.soft,figcaption,small,td.soft{color:var(--soft)}
.verdict{font-size:1.1rem;font-weight:600;padding:.6em .8em;border-left:.4em solid;margin:1em 0}
.pass{color:var(--good)}.fail,.error,.missing{color:var(--bad)}.skipped,.waived{color:var(--mid)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;border-bottom:2px solid var(--line);padding:.3em .5em;vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:.35em .5em;vertical-align:top;overflow-wrap:anywhere}
table.gates td:nth-child(6){white-space:nowrap}
td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
figure{margin:1em 0;break-inside:avoid}
img{max-width:100%;height:auto}
pre{overflow-x:auto;background:#f6f6f6;padding:.7em;font-size:.8rem}
code{overflow-wrap:anywhere}
details{margin:.6em 0}summary{cursor:pointer}
@media (max-width:44rem){
 table.gates thead{position:absolute;left:-9999px}
 table.gates tr{display:block;border-bottom:2px solid var(--line);padding:.4em 0}
 table.gates td{display:flex;justify-content:space-between;gap:1em;border:0;padding:.15em 0;text-align:right;
  white-space:normal}
 table.gates td::before{content:attr(data-label);color:var(--soft);text-align:left;flex:0 0 6em}
}
@media print{
 body{font-size:10pt;max-width:none;padding:0}a{color:inherit}tr{break-inside:avoid}
 details::details-content{content-visibility:visible;block-size:auto}
}
"""


def write(folder: Path, record: PhaseRecord, *, config: RunConfig) -> Path:
    """Write `report.html` into the run folder; before `record.write_phase`, which hashes it.

    Args:
        folder: the run folder, with one folder for each stage.
        record: the draft of its record.
        config: what the stages were judged by.
    """
    write_atomic(folder / NAME, page(record, config=config, folder=folder))
    return folder / NAME


def page(record: PhaseRecord, *, config: RunConfig, folder: Path) -> str:
    """The whole page."""
    title = f"Phase {config.phase.number}: {config.phase.title}"
    body = [
        f"<h1>{_e(title)}</h1>",
        f"<p>{_e(config.phase.question)}</p>",
        _head(record),
        "<h2>Gates</h2>",
        _gates(record.results),
        "<h2>Stages</h2>",
        *[_stage(stage, config=config, folder=folder) for stage in record.stages],
        "<h2>Where it ran</h2>",
        _environment(record),
        "<h2>Configuration</h2>",
        _configuration(config),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{_e(title)} · {_e(record.run)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(record: PhaseRecord) -> str:
    good, reasons = decide(record)
    word = "Passed: may be promoted" if good else "Not promoted"
    if not good and record.passed:
        word = (
            "Passed, but not promoted" if record.promotes else f"Passed; profile '{record.profile}' is never promoted"
        )
    kind = "pass" if record.passed else "fail"
    told = not good and (record.promotes or not record.passed)
    why = "" if not told else "<ul>" + "".join(f"<li>{_e(reason)}</li>" for reason in reasons) + "</ul>"
    times = f"{record.started[:19].replace('T', ' ')} – {record.ended[11:19]} UTC"
    scope = f"{record.scope.count} × {record.scope.kind}"
    let = [f"gate {result.gate_id}: {result.waiver}" for result in record.results if result.waiver]
    waived = "".join(f"<p class='waived'><strong>{_e(text)}</strong></p>" for text in let)
    return (
        f"<div class='verdict {kind}'>{_e(word)} · {_e(verdict.count(record.results))}</div>{why}{waived}"
        f"<p class='soft'>Run {_e(record.run)} · {times} · profile {_e(record.profile)} · on {_e(scope)}</p>"
    )


def _gates(results: Sequence[GateResult]) -> str:
    names = ("gate", "observed", "threshold", "unit", "margin", "status", "source and reason")
    rows = []
    for result in results:
        gate_id, observed, threshold, margin, source, status = verdict.row(result)
        note = "".join(f"<br><em>{_e(text)}</em>" for text in (result.message, result.waiver) if text)
        cells = (
            ("", f"<strong>{_e(result.title)}</strong><br><small>{_e(gate_id)} · {_e(result.metric)}</small>"),
            ("number", _e(observed)),
            ("number", _e(threshold)),
            ("soft", _e(result.unit)),
            ("number", _e(margin)),
            (result.status, f"<strong>{_e(status)}</strong>"),
            ("", f"<span>{_e(source)}<br><small>{_e(result.rationale)}</small>{note}</span>"),
        )
        rows.append(
            "<tr>"
            + "".join(
                f"<td class='{kind}' data-label='{name}'><span>{cell}</span></td>"
                for name, (kind, cell) in zip(names, cells, strict=True)
            )
            + "</tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table class='gates'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _stage(stage: StageOutcome, *, config: RunConfig, folder: Path) -> str:
    home = folder / stage.name
    parts = [f"<h3>{_e(config.phase.stages[stage.name].title)}</h3>"]
    word = stage.status.replace("_", " ")
    parts.append(
        f"<p><strong class='{'pass' if stage.finished else 'fail'}'>{_e(word)}</strong> · {stage.seconds:.0f} s · "
        f"{_e(verdict.count(stage.results))}{_links(stage.name, home)}</p>"
    )
    origin = stage.inputs.get("reused_from") or stage.inputs.get("anew")
    if origin:
        told = "computed by" if stage.status == "reused" else "run anew:"
        parts.append(f"<p class='soft'>{told} {_e(origin)}</p>")
    if stage.error:
        parts.append(f"<pre>{_e(stage.error)}</pre>")
    curve = _loss_curve(home)
    if curve:
        parts.append(_picture(curve, "Loss over training"))
    for name, title in _figures(home):
        path = home / "figures" / f"{name}.png"
        if path.is_file():
            parts.append(_picture(path.read_bytes(), title))
    return "\n".join(parts)


def _links(stage: str, home: Path) -> str:
    names = {
        "executed.html": "notebook to read",
        "executed.ipynb": "executed notebook",
        "log.txt": "log",
        "metrics.jsonl": "metrics",
    }
    links = [f"<a href='{_e(stage)}/{name}'>{text}</a>" for name, text in names.items() if (home / name).is_file()]
    return " · " + " · ".join(links) if links else ""


def _figures(home: Path) -> list[tuple[str, str]]:
    """Names and titles of a stage's figures; those of a stage that was never closed go by their files' names."""
    try:
        listed = [(str(entry["name"]), str(entry["title"])) for entry in read_json(home / "stage.json")["figures"]]
    except (ValueError, KeyError, TypeError):
        listed = []
    names = {name for name, _ in listed}
    return listed + [
        (path.stem, path.stem) for path in sorted((home / "figures").glob("*.png")) if path.stem not in names
    ]


def _loss_curve(home: Path) -> bytes:
    """The curve of `train/loss` and `validation/loss` over steps as PNG; nothing if the stage logged none."""
    try:
        points = gates.read_points(home / "metrics.jsonl")
    except gates.MetricsError:
        return b""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, label in (("train/loss", "training"), ("validation/loss", "held-out text")):
        steps = [(p.step, p.value) for p in points if p.name == name and p.step is not None and _is_number(p.value)]
        if len(steps) > 1:
            series[label] = ([float(step) for step, _ in steps], [float(value) for _, value in steps])
    if "training" not in series:
        return b""
    from dsv3lab import plots  # matplotlib takes a while, and most stages have no curve

    return plots.png(plots.loss(series))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _picture(content: bytes, title: str) -> str:
    data = base64.b64encode(content).decode()
    image = f"<img alt='{_e(title)}' src='data:image/png;base64,{data}'>"
    return f"<figure>{image}<figcaption>{_e(title)}</figcaption></figure>"


def _environment(record: PhaseRecord) -> str:
    environment = record.environment
    git = record.git.revision[:12] + (" with changes" if record.git.dirty else "") if record.git.revision else "no git"
    rows = {
        "devices": f"{record.scope.count} × {record.scope.kind}",
        "host": f"{environment.system}, {environment.cores} cores, {environment.memory_gib} GiB",
        "Python": environment.python,
        "packages": ", ".join(f"{name} {version}" for name, version in environment.packages.items()),
        "variables": ", ".join(f"{name}={value}" for name, value in environment.variables.items())
        or "none of JAX's set",
        "revision": git,
        "configuration": record.config_sha256,
        "code": f"{len(record.inputs.code)} files, {len(record.inputs.lock)} lock files, hashed in record.json",
        "built on": f"{record.upstream.record} ({record.upstream.record_sha256[:12]})"
        if record.upstream
        else "nothing",
    }
    return (
        "<table>"
        + "".join(f"<tr><td class='soft'>{_e(k)}</td><td>{_e(v)}</td></tr>" for k, v in rows.items())
        + "</table>"
    )


def _configuration(config: RunConfig) -> str:
    parts = []
    for section in (field.name for field in dataclasses.fields(config)):
        value = plain(getattr(config, section))
        if section == "phase":  # gates and stages stand above
            value = {key: value[key] for key in ("number", "title", "requires_phase", "seed")}
        lines = "\n".join(f"{key}: {item}" for key, item in _flat(value, ""))
        parts.append(f"<details><summary>{_e(section)}</summary><pre>{_e(lines)}</pre></details>")
    return "".join(parts)


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _flat(item, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _e(text: Any) -> str:
    return html.escape(str(text), quote=True)
