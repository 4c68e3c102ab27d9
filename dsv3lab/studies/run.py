"""`dsv3lab study`: run the trainings of a study, each in a process of its own, and go on after a kill.

    runs/studies/<study>/<time>/   study.json        what runs: settings, hashes, code, environment
                                   log.jsonl         what happened, each line with the hash of the one before
                                   trainings/<name>/ configuration, checkpoints until it ends, reports, result.json
                                   prediction.json   written before the training that it speaks of
                                   result.json, figures/*.png

A study never promotes anything. The same command goes on with the newest folder of the same settings, code and
environment; a finished training is not repeated.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3lab import plots
from dsv3lab.config import CONF, ROOT, ConfigError, digest, nearest, plain, runs_dir, study_names
from dsv3lab.config.disk import write_atomic
from dsv3lab.config.studies import PROFILES
from dsv3lab.config.text import clock
from dsv3lab.studies import analysis, curves, figures, log, prediction, results, trainings
from dsv3lab.studies.log import StudyError
from dsv3lab.studies.trainings import Study, Training
from dsv3lab.workbook import commands
from dsv3lab.workbook.compose import dump
from dsv3lab.workbook.files import new_name, read_json, utc_now
from dsv3lab.workbook.inputs import code_sha256, read_environment, read_git, uncommitted
from dsv3lab.workbook.process import (
    BusyError,
    Interrupts,
    attend,
    counted_interrupts,
    kernel_environment,
    last_line,
    locked,
)
from dsv3lab.workbook.progress import StageLine
from dsv3lab.workbook.statuses import EXECUTION_ERROR, PREEMPTED, USAGE
from dsv3lab.workbook.summary import shown

ALL = "all"
DESCRIPTION = """Run studies: many trainings that answer one question each. They have records of their own and never promote.
The same command goes on after a kill; what has finished is not repeated."""
EPILOG = """example: dsv3lab study balance --save

exit status: 0 done, 2 usage or configuration, 3 a training failed or a record was changed, 75 interrupted: run it again"""


def main(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Entry point of `dsv3lab study`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab study",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = study_names(conf)
    parser.add_argument("words", nargs="*", metavar="NAME or key=value", help=f"{', '.join(names)}, or {ALL}")
    parser.add_argument("--profile", default="default", choices=PROFILES, help="ci: the size of tests")
    parser.add_argument("--plan", action="store_true", help="list the trainings with their cost and run nothing")
    parser.add_argument("--new", action="store_true", help="begin anew, whatever there is")
    parser.add_argument("--save", action="store_true", help="copy the result to benchmarks/results, to be committed")
    args = parser.parse_intermixed_args(argv)
    overrides = [word for word in args.words if "=" in word]
    asked = [word for word in args.words if "=" not in word]
    for name in asked:
        if name not in (*names, ALL):
            raise ConfigError(f"no study '{name}'{nearest(name, names)}")
    if not asked and (args.save or args.new):
        raise ConfigError(f"name the studies ({', '.join(names)}), or {ALL}")
    chosen = names if ALL in asked or not asked else asked
    if args.save and (args.profile != "default" or overrides):
        raise ConfigError("--save: only the study as it stands in conf/studies is committed; leave the others out")
    if args.save:
        results.refuse_uncommitted()  # now, and not after an hour
    studies = [trainings.read(name, profile=args.profile, overrides=overrides, conf=conf) for name in chosen]
    if args.plan or not asked:
        print("\n\n".join(map(outline, studies)))
        if not asked and not args.plan:
            print(f"\nnothing was started: name one, as in `{commands.verb('study', names[0])}`, or {ALL}")
        return 0
    try:
        for study in studies:
            folder = runs_dir() / "studies" / study.name
            with locked(folder / ".lock", what=f"study {study.name}"), counted_interrupts() as interrupts:
                status = _Running(study=study, interrupts=interrupts).run(new=args.new, save=args.save)
            if status:
                return status
    except BusyError as error:
        print(f"dsv3lab study: {error}", file=sys.stderr)
        return USAGE
    except StudyError as error:
        print(f"dsv3lab study: {error}", file=sys.stderr)
        return EXECUTION_ERROR
    return 0


def outline(study: Study) -> str:
    """The trainings of a study with their cost, for a terminal."""
    settings = study.settings
    usual = f"usually {clock(settings.expected_s)} on two idle cores" if not study.overrides else "with overrides"
    lines = [f"{study.name}: {settings.title}. {settings.question}", f"{len(study.trainings)} trainings, {usual}"]
    for one in study.trainings:
        lines.append(
            f"  {one.name:<28} {one.parameters / 1e6:7.2f}M parameters {one.tokens / 1e6:7.3f}M tokens "
            f"{one.steps:>5} steps {one.flops / 1e12:8.2f} TFLOP"
        )
    if study.predicted:
        lines.append(f"the loss of '{study.predicted.name}' is predicted from the others, in writing, before it runs")
    return "\n".join(lines)


@dataclass(kw_only=True)
class _Running:
    """One call for one study."""

    study: Study
    interrupts: Interrupts
    folder: Path = Path()
    data: str = ""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Outcomes of the finished trainings by name, in the order of the study."""

    def run(self, *, new: bool, save: bool) -> int:
        """Run what is missing; returns the exit status."""
        self._open(new=new)
        print(f"{outline(self.study)}\n{shown(self.folder)}, {len(self.done)} done", flush=True)
        begun = time.monotonic()
        for index, training in enumerate(self.study.trainings, 1):
            if training.name in self.done:
                continue
            if training is self.study.predicted:
                self._predict(training)
            status = self._train(training, label=f"[{index}/{len(self.study.trainings)}] {training.name}")
            if status:
                return status
            left = [one for one in self.study.trainings if one.name not in self.done]
            if left:
                rest = clock(sum(map(self._usual, left)))
                print(f"  {clock(time.monotonic() - begun)} elapsed, {len(left)} to run, about {rest} left", flush=True)
        return self._finish(save=save)

    def _open(self, *, new: bool) -> None:
        """Take the newest folder of this very study, or make one."""
        identity, parent = self.study.identity(), runs_dir() / "studies" / self.study.name
        for path in [] if new else sorted(parent.glob("*/study.json"), reverse=True):
            if read_json(path).get("identity") == identity:
                self.folder = path.parent
                break
        else:
            self.folder = parent / new_name()
            self._begin(identity)
        events = log.read(self.folder)
        for training in self.study.trainings:
            entered = [e for e in events if e["event"] == "finished" and e["training"] == training.name]
            if entered:
                self.done[training.name] = self._outcome(training, entered[-1]["sha256"])

    def _begin(self, identity: str) -> None:
        about = {
            "study": self.study.name,
            "profile": self.study.profile,
            "overrides": list(self.study.overrides),
            "identity": identity,
            "settings": plain(self.study.settings),
            "code": {
                "revision": read_git().revision,
                "uncommitted": uncommitted(ROOT, *results.CODE),
                "sha256": digest(code_sha256()),
            },
            "environment": plain(read_environment()),
            "started": utc_now(),
        }
        write_atomic(self.folder / "study.json", json.dumps(about, indent=1) + "\n")
        log.append(self.folder, "begun", study=self.study.name, identity=identity)

    def _outcome(self, training: Training, sha256: str) -> dict[str, Any]:
        """A finished training's result, as it was written."""
        path = self._of(training) / "result.json"
        try:
            found = read_json(path)
        except ValueError as error:
            raise StudyError(f"{error}; begin anew with --new") from None
        if digest(found) != sha256:
            raise StudyError(f"{path}: changed after it was written; begin anew with --new")
        return found

    def _of(self, training: Training) -> Path:
        return self.folder / "trainings" / training.folder

    def _predict(self, training: Training) -> None:
        written = prediction.write(self.folder, training, list(self.done.values()))
        print(
            f"  prediction, written {written['written']}: {training.name} will end at {written['loss']:.4f} nats per token "
            f"of held-out text ({written['low']:.4f} to {written['high']:.4f}) · {shown(self.folder / prediction.NAME)}",
            flush=True,
        )

    def _train(self, training: Training, *, label: str) -> int:
        """Run one training to its end; returns 0, or the status with which the study stops."""
        if digest(code_sha256()) != read_json(self.folder / "study.json")["code"]["sha256"]:
            raise StudyError("the code changed while the study ran; the same command begins one with the code of now")
        folder = self._of(training)
        folder.mkdir(parents=True, exist_ok=True)
        config, text = folder / "config.resolved.yaml", folder / "log.txt"
        config.write_text(dump(training.resolved))
        log.append(self.folder, "started", training=training.name, config_sha256=training.sha256)
        line = StageLine(label, folder, expected_s=self._usual(training), words="log.txt")
        status = 0
        if not self.data:
            status = execute(["dsv3lab.data", "--config", str(config)], out=text, line=line, interrupts=self.interrupts)
            self.data = "" if status else _said(text)
        if not status and not self.interrupts.count:
            words = ["dsv3lab.train", "--config", str(config), "--data", self.data, "--directory", str(folder)]
            words += ["--summary", str(folder / "summary.json")]
            status = execute(words, out=text, line=line, interrupts=self.interrupts)
        if status or not (folder / "summary.json").is_file():
            log.append(self.folder, "stopped", training=training.name, status=status, seconds=round(line.elapsed, 1))
            stopped = self.interrupts.count or status == PREEMPTED
            said = "interrupted: run the same command again" if stopped else _said(text)
            line.end("failed", f"{said} (log: {shown(text)})")
            return PREEMPTED if stopped else EXECUTION_ERROR
        one = self._keep(training, folder, seconds=line.elapsed)
        line.end("ok", f"loss {one['loss']:.4f}, held out {one['validation_loss']:.4f} nats per token")
        return 0

    def _keep(self, training: Training, folder: Path, *, seconds: float) -> dict[str, Any]:
        """Write what a training came to, enter it into the log, and let its checkpoints go."""
        stopped = [e for e in log.read(self.folder) if e["event"] == "stopped" and e["training"] == training.name]
        settings = self.study.settings
        one = curves.outcome(
            training,
            folder,
            folder / "summary.json",
            last=settings.last,
            points=settings.points,
            seconds=seconds + sum(event["seconds"] for event in stopped),
        )
        write_atomic(folder / "result.json", json.dumps(one, indent=1) + "\n")
        log.append(self.folder, "finished", training=training.name, sha256=digest(one))
        self.done[training.name] = one
        for path in folder.glob("step_*"):
            shutil.rmtree(path)
        return one

    def _finish(self, *, save: bool) -> int:
        predicted = prediction.read(self.folder) if self.study.predicted else None
        about = {key: value for key, value in read_json(self.folder / "study.json").items() if key != "identity"}
        outcomes = [self.done[one.name] for one in self.study.trainings]
        result = results.write(self.folder, about, outcomes, predicted=predicted, events=log.read(self.folder))
        results.check(result)
        for key, (drawn, _) in figures.of(result).items():
            path = self.folder / "figures" / f"{key}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(plots.png(drawn))
        print("\n".join(["", results.headline(result), *analysis.words(self.study.name, result["summary"])]))
        print(f"result:  {shown(self.folder / results.NAME)}\nfigures: {shown(self.folder / 'figures')}")
        if save:
            print(f"saved:   {shown(results.save(result))} (commit it; the notebooks show it)")
        elif self.study.profile == "default" and not self.study.overrides:
            print(f"to show it in the notebooks: {commands.verb('study', self.study.name, '--save')}")
        return 0

    def _usual(self, training: Training) -> float:
        """Seconds that a training takes: by its FLOPs at the rate of its variant, of this study, or as the settings say."""
        ran = [one for one in self.done.values() if one["variant"] == training.variant] or list(self.done.values())
        if ran:
            return training.flops * sum(one["seconds"] for one in ran) / sum(one["flops"] for one in ran)
        return training.flops * self.study.settings.expected_s / sum(one.flops for one in self.study.trainings)


def execute(words: Sequence[str], *, out: Path, line: StageLine, interrupts: Interrupts) -> int:
    """Run `python -m` with `words` in a process of its own and pass signals on to it; returns its exit status."""
    return attend(
        [sys.executable, "-m", *words],
        environment=kernel_environment(runs_dir(), stage="study"),
        out=out,
        line=line,
        interrupts=interrupts,
        second=signal.SIGKILL,
    )


def _said(path: Path) -> str:
    return last_line(path) or "its process said nothing"
