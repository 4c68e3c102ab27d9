"""Fill the README's results and pictures from the newest promoted run of each phase.

    .venv/bin/python docs/make.py

Numbers come from the records' files and pictures from the runs' figures; with Chromium on the machine, pictures of the
phase 2 report, of an executed notebook and of the MLflow UI are taken too.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from dsv3lab.config import ROOT, runs_dir
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import last_values, ui
from dsv3lab.workbook import record as records
from dsv3lab.workbook.compose import load
from dsv3lab.workbook.store import view_address

PICTURES = ROOT / "docs" / "pictures"
FIGURES = {
    "loss": ("phase2/train/figures/loss.png", "Loss over training, with held-out text"),
    "bits_per_byte": ("phase2/train/figures/bits_per_byte.png", "Bits per byte on held-out text, against references"),
    "maxvio": ("phase1/deepseekmoe/figures/maxvio.png", "Imbalance of the experts under four balance methods"),
}

SPARE = 800
"""Pixels that are taken below a screenshot and cut off: Chromium leaves the last tiles of a long page blank at times."""
REFERENCES = {
    "bigram": "token bigram, counted on the tokens that the model was trained on",
    "bigram_corpus": "token bigram, counted on the whole training corpus",
    "gzip_context": "`gzip -9`, in chunks of the model's context",
    "gzip_document": "`gzip -9`, each document",
    "xz_document": "`xz -9`, each document",
    "gzip_together": "`gzip -9`, all documents of a domain together",
    "xz_together": "`xz -9`, all documents of a domain together",
}


def newest() -> dict[str, Path]:
    """The folder of the newest promoted execution of each phase."""
    chain = [p for p in chains.read_chain(runs_dir()) if p.profile == "default"]
    found = {p.phase: (runs_dir() / p.record).parent for p in chain}
    if len(found) < 4:
        raise SystemExit(f"{runs_dir()}: not all four phases are promoted; run `make run` first")
    return found


def results(folders: dict[str, Path]) -> str:
    """The tables of expected results, in Markdown."""
    record = records.read(folders["phase2"])
    train = last_values(folders["phase2"] / "train" / "metrics.jsonl")
    lines = ["| phase | minutes | largest memory of a stage | gates passed |", "| --- | --- | --- | --- |"]
    for phase, folder in sorted(folders.items()):
        content = records.read(folder)
        values = [last_values(folder / stage.name / "metrics.jsonl") for stage in content.stages]
        minutes = sum(stage.seconds for stage in content.stages) / 60
        memory = max(value["stage/peak_rss_bytes"] for value in values) / 1e9
        judged = [result for result in content.results if result.status != "skipped"]
        passed = f"{sum(result.status == 'pass' for result in judged)} of {len(judged)}"
        skipped = len(content.results) - len(judged)
        passed += f" ({skipped} more need what is not here)" if skipped else ""
        lines.append(f"| {phase} | {minutes:.1f} | {memory:.1f} GB | {passed} |")
    lines += ["", "| held-out text | bits per byte |", "| --- | --- |"]
    lines.append(f"| **this model** | **{train['quality/bits_per_byte']:.3f}** |")
    lines += [f"| {text} | {train[f'eval/reference/{key}']:.3f} |" for key, text in REFERENCES.items()]
    every = load(folders["phase2"] / "config.resolved.yaml").eval.every
    environment = record.environment
    lines += [
        "",
        f"Bits per UTF-8 byte of one held-out document in {every}, by package and size "
        f"({train['eval/bytes'] / 1e6:.1f} MB); the means of the domains (source, reference, readme) weighted like the "
        "training mixture.",
        "",
        f"Validation loss {train['quality/loss']:.3f} nats/token; training at {train['perf/tokens_per_s']:,.0f} tokens/s, "
        f"{train['perf/peak_fraction']:.0%} of the matmul peak measured in the same process "
        f"({train['perf/matmul_peak_flops'] / 1e9:.0f} GFLOP/s, fp32). One run of {record.started[:10]} on "
        f"{environment.cores} CPU cores with {environment.memory_gib:.0f} GiB, Python {environment.python}, "
        f"jax {environment.packages['jax']}; `docs/make.py` wrote this from the run's files.",
    ]
    return "\n".join(lines)


def benchmarks() -> str:
    """A table of the committed results in `benchmarks/results`."""
    lines = ["| benchmark | here | reference | ratio | required |", "| --- | --- | --- | --- | --- |"]
    found = json.loads((ROOT / "benchmarks" / "results" / "grouped_matmul.json").read_text())
    sizes, seconds, bytes_ = found["sizes"], found["seconds"], found["temporaries_bytes"]
    lines += [
        f"| time of the routed experts, forward and backward | {seconds['blocked']:.3f} s | {seconds['ragged']:.2f} s "
        f"(`jax.lax.ragged_dot`) | {found['times_faster']:.1f} times faster | {found['required']['times_faster']:.0f} |",
        f"| temporaries of the same | {bytes_['blocked'] / 1e6:.0f} MB | {bytes_['ragged'] / 1e6:.0f} MB | "
        f"{found['temporaries_ratio']:.3f} | at most {found['required']['temporaries_ratio']} |",
        "",
        f"{sizes['tokens']} tokens, width {sizes['width']}, {sizes['experts']} experts of {sizes['inner']}, top {sizes['top']}, "
        f"{sizes['dtype']}; {found['device']['cores']} CPU cores, jax {found['versions']['jax']}, {found['date'][:10]}; "
        "medians, both in one process (`benchmarks/grouped_matmul.py`).",
    ]
    return "\n".join(lines)


def pictures(folders: dict[str, Path]) -> str:
    """Copy the figures, take the screenshots, and return the Markdown that shows them."""
    PICTURES.mkdir(exist_ok=True)
    lines = []
    for name, (path, title) in FIGURES.items():
        phase, _, rest = path.partition("/")
        shutil.copyfile(folders[phase] / rest, PICTURES / f"{name}.png")
        lines.append(f"![{title}](docs/pictures/{name}.png)")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium: the screenshots stay as they are")
    else:
        shot(browser, (folders["phase2"] / "report.html").as_uri(), "report", height=1400)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "executed.html"  # without this machine's paths
            page.write_text((folders["phase1"] / "mla" / "executed.html").read_text().replace(f"{ROOT}/", ""))
            shot(browser, page.as_uri(), "notebook", height=1600)
        mlflow(browser)
    shown = {"report": "The report of phase 2", "notebook": "An executed notebook", "mlflow": "The MLflow UI"}
    lines += [f"![{title}](docs/pictures/{n}.png)" for n, title in shown.items() if (PICTURES / f"{n}.png").exists()]
    return "\n\n".join(lines)


def shot(browser: str, address: str, name: str, *, height: int, width: int = 1280, wait_ms: int = 10000) -> None:
    """A screenshot of the top of `address`, in pixels."""
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
        ]
        options += [
            f"--user-data-dir={profile}",
            f"--window-size={width},{height + SPARE}",
            f"--virtual-time-budget={wait_ms}",
        ]
        target = PICTURES / f"{name}.png"
        subprocess.run(
            [browser, *options, f"--screenshot={target}", address], check=True, capture_output=True, timeout=180
        )
        with Image.open(target) as whole:
            top = whole.crop((0, 0, width, height))
        top.save(target)


def mlflow(browser: str) -> None:
    """A screenshot of the runs' table in the light UI."""
    port = ui.free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    server = subprocess.Popen(ui.command(runs_dir() / "mlflow.db", port), env=ui.environment(), **quiet)
    try:
        ui.wait_until_up(server, port)
        view = view_address(runs_dir() / "mlflow.db")
        if not view:
            raise SystemExit("MLflow knows no experiment of this project; run `dsv3lab sync` first")
        shot(browser, f"http://127.0.0.1:{port}{view}", "mlflow", width=1800, height=800, wait_ms=15000)
    finally:
        ui.stop(server)


def fill(text: str, mark: str, content: str) -> str:
    """`text` with what stands between the marks replaced."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def main() -> None:
    folders = newest()
    readme = ROOT / "README.md"
    text = fill(readme.read_text(), "results", f"{results(folders)}\n\n{benchmarks()}")
    readme.write_text(fill(text, "pictures", pictures(folders)))


if __name__ == "__main__":
    main()
