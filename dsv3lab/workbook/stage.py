"""What a notebook talks to: its configuration, its folder, and where its numbers and figures go.

A notebook opens its stage, logs, and closes it. The same notebook runs by hand (it composes the configuration and
writes below `runs/standalone`) and under the pipeline (which gives it a folder with a `request.json`).
"""

import json
import math
import os
import re
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError, RunConfig, digest, nearest, plain, runs_dir
from dsv3lab.workbook import gates, promotion, reuse, verdict, waivers
from dsv3lab.workbook import record as records
from dsv3lab.workbook.compose import compose, dump, load
from dsv3lab.workbook.files import append_line, new_name, read_json, relative, sha256_file, utc_now, write_atomic
from dsv3lab.workbook.inputs import code_sha256, read_environment

SCHEMA = 1
METRICS = "metrics.jsonl"

_METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-./: ]*")  # what MLflow accepts
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.]*")


class Stage:
    """One notebook's run. Make it with `Stage.open`."""

    config: RunConfig
    folder: Path
    name: str
    standalone: bool

    def __init__(
        self, *, name: str, config: RunConfig, folder: Path, request: Mapping[str, Any], standalone: bool
    ) -> None:
        self.name, self.config, self.folder, self.standalone = name, config, folder, standalone
        self._request = request
        self._started, self._clock = utc_now(), time.perf_counter()
        self._device: gates.Device | None = None
        self._inputs: dict[str, Any] = {"needs": {}, "uses": {}}
        self._figures: list[dict[str, Any]] = []
        self._work: list[Path] = []

    @classmethod
    def open(cls, name: str, *, run_dir: str = "", overrides: Sequence[str] = ()) -> "Stage":
        """Open the stage `name` ("phase1/mla") and print one line that says where it writes.

        Args:
            name: phase and stage.
            run_dir: the folder that the pipeline made, with a `request.json`; empty when run by hand.
            overrides: Hydra overrides for a run by hand, e.g. `["profile=ci"]`.

        Raises:
            ConfigError: for an unknown stage, or a folder that was prepared for something else.
        """
        phase, _, short = name.partition("/")
        if not re.fullmatch(r"phase[1-4]", phase):
            raise ConfigError(f"stage '{name}': name it as phaseN/stage")
        if run_dir:
            stage = cls._from_request(name, Path(run_dir).resolve())
        else:
            config, resolved = compose(overrides, phase=int(phase[5:]))
            folder = runs_dir() / "standalone" / f"{phase}-{short}" / new_name()
            write_atomic(folder / "config.resolved.yaml", dump(resolved))
            request = {"nonce": secrets.token_hex(8), "needs": {}}
            stage = cls(name=name, config=config, folder=folder, request=request, standalone=True)
        if short not in stage.config.phase.stages:
            raise ConfigError(f"stage '{name}': unknown in {phase}{nearest(short, stage.config.phase.stages)}")
        for stale in (METRICS, "stage.json", "progress.txt"):  # a stage run again in its folder starts from nothing
            (stage.folder / stale).unlink(missing_ok=True)
        shutil.rmtree(stage.folder / "figures", ignore_errors=True)
        how = "standalone" if stage.standalone else f"pipeline run {stage.folder.parent.name}"
        print(f"{name} · {how} · profile {stage.config.profile.name} · {stage.folder}")
        return stage

    @classmethod
    def _from_request(cls, name: str, folder: Path) -> "Stage":
        try:
            request = read_json(folder / "request.json")
        except ValueError as error:
            raise ConfigError(f"run_dir: {error}; leave run_dir empty to run by hand") from None
        if request.get("stage") != name:
            raise ConfigError(f"{folder / 'request.json'}: made for stage '{request.get('stage')}', not for '{name}'")
        if (folder.parent / records.NAME).exists():  # an executed notebook that was opened and run again
            raise ConfigError(f'{folder}: already recorded; set run_dir to "" to run this notebook by hand')
        path = (folder / str(request.get("config", ""))).resolve()
        if not path.is_file() or sha256_file(path) != request.get("config_sha256"):
            raise ConfigError(f"{path}: not the configuration that {folder / 'request.json'} names")
        return cls(name=name, config=load(path), folder=folder, request=request, standalone=False)

    @property
    def short(self) -> str:
        """The name without its phase."""
        return self.name.split("/", 1)[1]

    def metric(self, name: str, value: Any, *, step: int | None = None) -> None:
        """Log one number (anything that `float()` takes, 0-d arrays included)."""
        self.metrics({name: value}, step=step)

    def metrics(self, values: Mapping[str, Any], *, step: int | None = None) -> None:
        """Log numbers that belong together, by one line of `metrics.jsonl`."""
        for name in values:
            if not _METRIC.fullmatch(name) or ".." in name or len(name) > 250:
                raise ValueError(f"metric '{name}': use letters, digits and _ - . / : (MLflow takes no others)")
        numbers = {name: _number(name, value) for name, value in values.items()}
        entry = {"time": utc_now(), "step": None if step is None else int(step), "metrics": numbers}
        append_line(self.folder / METRICS, json.dumps(entry, separators=(",", ":"), allow_nan=False))

    def figure(self, fig: Any, name: str, *, title: str) -> Any:
        """Save a matplotlib figure as `figures/<name>.png` and return it, so that a cell that ends with it shows it.

        The labels of its axes are noted with its title: the report names the units below the picture.
        """
        path = self.folder / "figures" / f"{_file_name(name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=100, bbox_inches="tight", facecolor="white")
        content = path.read_bytes()
        fig._repr_png_ = lambda: content  # Jupyter shows the saved picture, whichever backend matplotlib has
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close(fig)  # or the cell would show it a second time
        entry = {"name": name, "title": title, "axes": _axes(fig)}
        self._figures = [f for f in self._figures if f["name"] != name] + [entry]
        return fig

    def need(self, name: str) -> Path:
        """The folder of another stage ("phase2/train"), which the configuration of this stage lists under `needs`.

        Raises:
            ConfigError: if the configuration does not list it.
            UpstreamError: if it was never promoted (standalone), with the command to run.
        """
        listed = self.config.phase.stages[self.short].needs
        if name not in listed:
            raise ConfigError(
                f"{self.name}: '{name}' is not among its needs ({', '.join(listed) or 'none'}) in conf/phase"
            )
        given = self._request.get("needs", {}).get(name)
        folder = Path(given) if given else promotion.find_stage(name, self.config.profile, runs_dir())
        path = folder / "stage.json"
        if not path.is_file():
            raise ConfigError(f"{path}: missing; run the stage {name} again")
        self._inputs["needs"][name] = {"folder": relative(folder, runs_dir()), "sha256": sha256_file(path)}
        return folder

    def work(self, name: str) -> Path:
        """A folder that survives a kill, so that the next run of the same stage continues from what is in it.

        It is keyed by the configuration of model, data, training and precision, by the package's code and versions, and
        by the stage: another `eval` continues the same training. `close` puts its files into the stage's folder under
        `name`: what is finished is recorded there. It is removed only then (by `close` in a run by hand, by the pipeline
        once the phase's record is written) or by `force=true`, with which a stage starts from nothing.
        """
        key = {section: plain(getattr(self.config, section)) for section in records.TRAINED}
        environment = read_environment()
        key |= {"packages": environment.packages, "variables": environment.variables}
        key |= {"stage": self.name, "code": code_sha256()}
        folder = runs_dir() / "work" / digest(key)[:16] / self.name.replace("/", "-") / _file_name(name)
        if folder not in self._work:
            if self._request.get("force"):  # the pipeline was told to reuse nothing
                shutil.rmtree(folder, ignore_errors=True)
            self._work.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def uses(self, name: str, folder: Path | str, digest: str) -> None:
        """Record an input folder that has a `manifest.json` (e.g. a dataset); `dsv3lab verify` follows its list."""
        manifest = Path(folder) / "manifest.json"
        if not manifest.is_file():
            raise ConfigError(f"{manifest}: missing; an input folder lists its files there")
        self._inputs["uses"][name] = {
            "folder": relative(Path(folder), runs_dir()),
            "digest": str(digest),
            "manifest_sha256": sha256_file(manifest),
        }

    def progress(self, text: str) -> None:
        """Show one line, here and on the pipeline's line for this stage (the last line of `progress.txt`)."""
        append_line(self.folder / "progress.txt", " ".join(str(text).split()))
        print(text, flush=True)

    def device(self, kind: str, count: int) -> None:
        """Say what the stage ran on, e.g. ("cpu", 8)."""
        self._device = gates.Device(kind=str(kind), count=int(count))

    def close(self) -> None:
        """Write `stage.json` and print a preview of the verdict. The pipeline judges again by itself."""
        wall = time.perf_counter() - self._clock
        self.metrics({"stage/wall_s": wall, "stage/peak_rss_bytes": _peak_rss_bytes()})
        for folder in self._work:
            self._keep(folder)
        device = self._device or _found_device()
        content = {
            "schema": SCHEMA,
            "stage": self.name,
            "nonce": self._request.get("nonce", ""),
            "status": "closed",
            "started": self._started,
            "ended": utc_now(),
            "device": plain(device),
            "inputs": self._inputs,
            "figures": self._figures,
            "versions": {"python": read_environment().python, **read_environment().packages},
            "wall_s": wall,
            "peak_rss_bytes": _peak_rss_bytes(),
            "work": [relative(folder, runs_dir()) for folder in self._work],
        }
        write_atomic(self.folder / "stage.json", json.dumps(content, sort_keys=True, indent=1) + "\n")
        if self.standalone:  # nobody records it later
            for folder in self._work:
                shutil.rmtree(folder, ignore_errors=True)
        results = gates.evaluate_folder(
            gates.stage_gates(self.config.phase.gates, self.short),
            self.folder,
            executed=True,
            device=device,
            waivers=waivers.load(phase=self.config.phase.name),
            config=self.config,
        )
        print(verdict.table(results))

    def _keep(self, folder: Path) -> None:
        target = self.folder / folder.name
        if folder.exists() and not target.exists():  # else the notebook, or an earlier close, has put its own there
            reuse.link_tree(folder, target)


def _number(name: str, value: Any) -> int | float | str:
    try:
        value = value.item() if hasattr(value, "item") else value
        number = int(value) if isinstance(value, int) else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric '{name}': {type(value).__name__} is not one number ({error})") from None
    if isinstance(number, float) and not math.isfinite(number):
        return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")
    return number


def _axes(fig: Any) -> list[str]:
    """The labels of a figure's axes and colour bars and those that small panels share, each once, in drawing order."""
    labels = [label for axes in fig.axes for label in (axes.get_xlabel(), axes.get_ylabel())]
    labels += [fig.get_supxlabel(), fig.get_supylabel()]
    return list(dict.fromkeys(" ".join(label.split()) for label in labels if label.strip()))


def _file_name(name: str) -> str:
    if not _FILE.fullmatch(name):
        raise ValueError(f"'{name}': use letters, digits and _ - . in names of files")
    return name


def _peak_rss_bytes() -> int:
    """Most memory that this process or one of its children held at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _found_device() -> gates.Device:
    """What JAX runs on, if the notebook has imported it (the workbook itself never does)."""
    jax = sys.modules.get("jax")
    if jax is None:
        return gates.Device(kind="cpu", count=1) if os.environ.get("JAX_PLATFORMS") == "cpu" else gates.Device()
    devices = jax.devices()
    first = devices[0]
    return gates.Device(kind="cpu" if first.platform == "cpu" else str(first.device_kind), count=len(devices))
