"""One self-contained HTML page for a phase execution: readable on a telephone, in print and offline."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError, RunConfig, build, diff, plain
from dsv3lab.config.run import read_yaml
from dsv3lab.config.text import listed
from dsv3lab.workbook import hints, report_figures, ui, verdict
from dsv3lab.workbook import record as records
from dsv3lab.workbook.chain import ChainError, read_chain
from dsv3lab.workbook.files import read_json, write_atomic
from dsv3lab.workbook.gates import GateResult
from dsv3lab.workbook.inputs import changes, environment_changes
from dsv3lab.workbook.promotion import decide
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome
from dsv3lab.workbook.report_figures import Picture
from dsv3lab.workbook.report_style import STYLE
from dsv3lab.workbook.tracking import STATE
from dsv3lab.workbook.waivers import Waiver

NAME = "report.html"
LISTED = 12
"""Changed files that are named; more are counted."""
ERROR_SIGNS = 6000
"""Characters of a stage's error that are shown: XLA lists every allocation when memory runs out. The log has the rest."""
_FILES = {
    "executed.html": "notebook to read",
    "executed.ipynb": "executed notebook",
    "log.txt": "log",
    "metrics.jsonl": "metrics",
}


def write(folder: Path, record: PhaseRecord, *, config: RunConfig, runs: Path, waivers: Sequence[Waiver]) -> Path:
    """Write `report.html` into the run folder; before `record.write_phase`, which hashes it.

    Args:
        folder: the run folder, with one folder for each stage.
        record: the draft of its record.
        config: what the stages were judged by.
        runs: the folder of all outputs, for the last promoted run of this phase.
        waivers: those of this phase, expired ones included.
    """
    text = page(record, config=config, folder=folder, runs=runs, waivers=waivers)
    write_atomic(folder / NAME, text)
    return folder / NAME


def page(record: PhaseRecord, *, config: RunConfig, folder: Path, runs: Path, waivers: Sequence[Waiver]) -> str:
    """The whole page."""
    title = f"Phase {config.phase.number}: {config.phase.title}"
    pictures = report_figures.collect(folder, [stage.name for stage in record.stages])
    sections = {
        "Gates": _gates(record.results),
        "Waivers": _waivers(waivers, record.results),
        "Stages": "\n".join(
            _stage(stage, config=config, folder=folder, pictures=pictures[stage.name]) for stage in record.stages
        ),
        "Since the last promotion": _difference(record, config=config, runs=runs),
        "Where it ran": _environment(record),
        "Configuration": _configuration(config),
    }
    links = [f"<a href='#{_anchor(name)}'>{name}</a>" for name in sections]
    body = [
        f"<h1>{_e(title)}</h1>",
        f"<p>{_e(config.phase.question)}</p>",
        _head(record),
        _places(record, config=config, folder=folder),
        f"<nav>{' · '.join(links)}</nav>",
        *[f"<h2 id='{_anchor(name)}'>{name}</h2>\n{content}" for name, content in sections.items()],
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{_e(title)} · {_e(record.run)}</title><style>{STYLE}</style></head>\n<body>\n"
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


def _places(record: PhaseRecord, *, config: RunConfig, folder: Path) -> str:
    """Where the files of the run and its MLflow run are."""
    files = {"record.json": "record", "config.resolved.yaml": "whole configuration"}
    links = ", ".join(f"<a href='{name}'>{text}</a>" for name, text in files.items())
    name = f"{config.phase.name}/{record.run}"
    return (
        f"<p class='soft'>Files of the run: {links}; links on this page lead into its folder, {_e(name)}. "
        f"{_tracked(name, config=config, folder=folder)}</p>"
    )


def _tracked(name: str, *, config: RunConfig, folder: Path) -> str:
    """Where the run is in MLflow; its id is known once the tracking thread has made it."""
    if not config.tracking.enabled:
        return "Not in MLflow: tracking.enabled is false."
    where = f"run <strong>{_e(name)}</strong> of the experiment {_e(config.tracking.experiment)}"
    try:
        state = read_json(folder / STATE)
        address = f"http://{ui.HOST}:{ui.PREFERRED_PORT}/#/experiments/{state['experiment']}/runs/{state['run']}"
    except (ValueError, KeyError, TypeError):
        return f"In MLflow (make ui): {where}."
    return f"In MLflow: {where}, <a href='{_e(address)}'>here while make ui runs</a> (it prints its port if it is another)."


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


def _waivers(waivers: Sequence[Waiver], results: Sequence[GateResult]) -> str:
    """Every waiver of the phase in conf/waivers.yaml, whether or not it lets a gate through."""
    if not waivers:
        return "<p>No gate of this phase has a waiver.</p>"
    status = {result.gate_id: result.status for result in results}
    rows = []
    for waiver in waivers:
        gate = waiver.gate.split("/", 1)[1]
        found = status.get(gate, "missing")
        meaning = {"waived": "lets it through", "pass": "not needed: the gate passes"}.get(
            found, f"the gate is {found}"
        )
        term = f"{waiver.created} to {waiver.expires}, on {'any device' if waiver.scope == 'any' else waiver.scope}"
        rows.append((gate, waiver.reason, f"{waiver.by}; {term}", meaning))
    return _table(("gate", "reason", "by whom and until when", "in this run"), rows)


def _stage(stage: StageOutcome, *, config: RunConfig, folder: Path, pictures: Sequence[Picture]) -> str:
    home = folder / stage.name
    parts = [f"<h3>{_e(config.phase.stages[stage.name].title)}</h3>"]
    word = stage.status.replace("_", " ")
    links = [f" · <a href='{_e(stage.name)}/{n}'>{text}</a>" for n, text in _FILES.items() if (home / n).is_file()]
    parts.append(
        f"<p><strong class='{'pass' if stage.finished else 'fail'}'>{_e(word)}</strong> · {stage.seconds:.0f} s · "
        f"{_e(verdict.count(stage.results))}{''.join(links)}</p>"
    )
    origin = stage.inputs.get("reused_from") or stage.inputs.get("anew")
    if origin:
        told = "computed by" if stage.status == "reused" else "run anew:"
        parts.append(f"<p class='soft'>{told} {_e(origin)}</p>")
    if stage.error:
        error, advice = hints.split(stage.error)
        cut = error if len(error) <= ERROR_SIGNS else f"{error[:ERROR_SIGNS]} …"
        parts.append(f"<pre>{_e(cut)}</pre>")
        parts += [f"<p><strong>What to do:</strong> {_e(advice)}</p>"] if advice else []
    curves = [picture for picture in pictures if picture.kind != "png"]
    figures = [picture for picture in pictures if picture.kind == "png"]
    if curves:
        parts.append(f"<div class='curves'>{''.join(map(report_figures.shown, curves))}</div>")
    return "\n".join([*parts, *map(report_figures.shown, figures)])


def _difference(record: PhaseRecord, *, config: RunConfig, runs: Path) -> str:
    """Configuration, code and environment against the last promoted run of the phase."""
    try:
        before = [promotion for promotion in read_chain(runs) if promotion.phase == record.phase]
        if not before:
            return f"<p>None promoted before: there is no run of {_e(record.phase)} to compare with.</p>"
        folder = (runs / before[-1].record).parent
        old, resolved = records.read(folder), read_yaml(folder / "config.resolved.yaml")
    except (ChainError, RecordError, ConfigError) as error:
        return f"<p>Nothing to compare with: {_e(error)}</p>"
    try:
        resolved = plain(build(RunConfig, resolved))  # with what may be left out, as `config` has it
    except ConfigError:
        pass  # of other code: its keys are compared as they stand
    found = diff(resolved, plain(config))
    parts = [
        f"<p>Compared with {_e(folder.name)}, promoted {before[-1].created[:10]} with profile {_e(before[-1].profile)}: "
        f"{len(found) or 'no'} key{'' if len(found) == 1 else 's'} of the configuration differ{'s' * (len(found) == 1)}.</p>"
    ]
    if found:
        rows = [(key, _value(one), _value(other)) for key, (one, other) in found.items()]
        parts.append(_table(("key", "promoted run", "this run"), rows))
    lines = changes(old.inputs.code, record.inputs.code) + changes(old.inputs.lock, record.inputs.lock)
    parts.append(f"<p>Code: {_e(listed(lines, most=LISTED) or 'the same')}.</p>")
    here = environment_changes(old.environment, record.environment)
    parts.append(f"<p>Environment: {_e(', '.join(here) or 'the same')}.</p>")
    return "\n".join(parts)


def _value(value: Any) -> str:
    return "–" if value is None else str(value)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td data-label='{n}'>{_e(cell)}</td>" for n, cell in zip(names, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return f"<table class='list'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _environment(record: PhaseRecord) -> str:
    environment = record.environment
    rows = {
        "devices": f"{record.scope.count} × {record.scope.kind}",
        "host": environment.host,
        "Python": environment.python,
        "packages": ", ".join(f"{name} {version}" for name, version in environment.packages.items()),
        "variables": environment.settings,
        "revision": str(record.git),
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
        lines = "\n".join(f"{key or section}: {item}" for key, item in _flat(value, ""))
        parts.append(f"<details><summary>{_e(section)}</summary><pre>{_e(lines)}</pre></details>")
    return "".join(parts)


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, item in value.items() for leaf in _flat(item, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _e(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
