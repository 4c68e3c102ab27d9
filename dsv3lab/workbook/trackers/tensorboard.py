"""TensorBoard event files of a run folder below `runs/tensorboard`, in folders of the same names.

Written by TensorBoard's own `EventFileWriter`, which needs no TensorFlow: the package that shows the events is then the
one that wrote them, and the one that tests read them with. Events can only be appended, so what is not complete is not
continued but written anew. TensorBoard keeps scalars as float32; the exact values are in `metrics.jsonl`.
"""

import importlib
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.workbook import verdict
from dsv3lab.workbook.record import PhaseRecord, StageOutcome
from dsv3lab.workbook.trackers.folder import Figure, figures, gate_numbers, lines_after, now, rows, stages, title

FOLDER = "tensorboard"


class TensorBoard:
    """The events of one run folder; see `trackers.Projection`. The phase's own events come last: they make it complete."""

    def __init__(self, folder: Path, *, runs: Path) -> None:
        self._folder, self._target = folder, runs / FOLDER / title(folder, runs)
        self._open: dict[str, _Events] = {}
        self._read: dict[str, int] = {}
        self._closed: set[str] = set()

    def open_phase(self, *, started: int | None = None) -> None:
        """Start from nothing: what is there was not written to its end, or is to be written again."""
        shutil.rmtree(self._target, ignore_errors=True)

    def open_stage(self, stage: str, *, started: int | None = None) -> None:
        """A folder of events for the stage, shown as a run of its own."""
        self._open[stage] = _Events(self._target / stage)
        self._read[stage] = 0

    def push(self, stage: str) -> int:
        """Pass on the new lines of the stage's `metrics.jsonl`; returns how many points."""
        data, self._read[stage] = lines_after(self._folder / stage / "metrics.jsonl", self._read[stage])
        count = 0
        for row in rows(data):
            self._open[stage].scalars(row.values, step=row.step or 0, time=row.time)
            count += len(row.values)
        self._open[stage].flush()
        return count

    def close_stage(self, outcome: StageOutcome, *, ended: int | None = None) -> None:
        """The last metrics, the figures and the verdict on the stage's gates."""
        when = ended or now()
        events = self._finish(outcome.name, when)
        events.scalars(gate_numbers(outcome.results), step=0, time=when)
        note = f"**{outcome.error}**\n\n" if outcome.error else ""
        events.text("verdict", note + verdict.markdown(outcome.results), time=when)
        events.close()

    def close_phase(self, record: PhaseRecord, *, promoted: bool, ended: int | None = None) -> None:
        """The stages that were not shown while they ran, then the phase: gates, verdict, configuration."""
        for outcome in record.stages:
            if outcome.name not in self._closed and outcome.name in stages(self._folder):
                self.close_stage(outcome, ended=ended)
        state = "promoted" if promoted else ("passed" if record.passed else "not passed")
        self._phase(f"**{state}**\n\n{verdict.markdown(record.results)}", gate_numbers(record.results), ended or now())

    def kill(self) -> None:
        """Show what the stages had written before their pipeline was killed."""
        for stage in stages(self._folder):
            if stage not in self._closed:
                self._finish(stage, now()).close()
        self._phase("**killed**: there is no record", {}, now())

    @property
    def complete(self) -> bool:
        """Whether the phase's own events are there."""
        return any(self._target.glob("events.out.tfevents.*"))

    def _finish(self, stage: str, when: int) -> "_Events":
        if stage not in self._open:
            self.open_stage(stage)
        self.push(stage)
        events = self._open.pop(stage)
        for figure in figures(self._folder / stage):
            events.image(figure, time=when)
        self._closed.add(stage)
        return events

    def _phase(self, note: str, numbers: Mapping[str, float], when: int) -> None:
        events = _Events(self._target)
        events.scalars(numbers, step=0, time=when)
        events.text("verdict", note, time=when)
        resolved = self._folder / "config.resolved.yaml"
        if resolved.is_file():
            events.text("config", "\n".join(f"    {line}" for line in resolved.read_text().splitlines()), time=when)
        events.close()


class _Events:
    """One file of events."""

    def __init__(self, folder: Path) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(folder))

    def scalars(self, values: Mapping[str, float], *, step: int, time: int) -> None:
        self._add([self._summary.Summary.Value(tag=k, simple_value=v) for k, v in values.items()], step, time)

    def image(self, figure: Figure, *, time: int) -> None:
        content = figure.path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of a PNG's first block
        image = self._summary.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        metadata = self._summary.SummaryMetadata(display_name=figure.title)
        self._add([self._summary.Summary.Value(tag=f"figures/{figure.name}", image=image, metadata=metadata)], 0, time)

    def text(self, tag: str, markdown: str, *, time: int) -> None:
        tensor = importlib.import_module("tensorboard.compat.proto.tensor_pb2").TensorProto
        types = importlib.import_module("tensorboard.compat.proto.types_pb2")
        metadata = importlib.import_module("tensorboard.plugins.text.metadata").create_summary_metadata(tag, "")
        value = tensor(dtype=types.DT_STRING, string_val=[markdown.encode()])
        self._add([self._summary.Summary.Value(tag=tag, tensor=value, metadata=metadata)], 0, time)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, values: Sequence[Any], step: int, time: int) -> None:
        if values:
            summary = self._summary.Summary(value=values)
            self._writer.add_event(self._event(wall_time=time / 1000, step=step, summary=summary))
