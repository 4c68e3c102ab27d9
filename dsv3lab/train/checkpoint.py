"""Checkpoints that survive a kill at any moment and are checked before they are trusted.

Orbax writes the arrays; it restores flipped bytes without a word, so every file is listed with its SHA-256 in a
manifest beside them, and nothing is restored before the manifest holds. A checkpoint is written into a hidden folder,
flushed to the disk and renamed: it exists whole or not at all. What a killed process left is removed at the next start.

    <directory>/step_00000100/   manifest.json   {"files": {path: sha256}, "digest": ...}
                                 meta.json       step, identity of the run, versions
                                 model/          Orbax: parameters and router biases, by name
                                 optimizer/      Orbax: moments and counts, by name (absent in an export)
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from dsv3lab.config import ConfigError, ModelConfig, canonical, diff, digest, plain
from dsv3lab.config.disk import flush, sha256_file
from dsv3lab.model import DeepSeek, abstract
from dsv3lab.train.step import TrainState

T = TypeVar("T")
MANIFEST = "manifest.json"
META = "meta.json"
_PREFIX = "step_"
DEBRIS = ".unfinished-"
"""How the name of a checkpoint begins that is not whole: being written, or being deleted."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be trusted or used; the message names the file and what to do."""


def save(directory: Path, state: TrainState, *, identity: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the `keep` newest.

    Args:
        directory: the folder of this run's checkpoints.
        state: what a resume needs; its step is also the position in the data.
        identity: what a resume must agree with (configuration, digest of the data), as JSON values.
        keep: newest checkpoints that stay.

    Returns:
        the checkpoint's folder. One that exists already is left as it is.
    """
    target = directory / f"{_PREFIX}{int(state.step):08d}"
    if not target.exists():
        _write(target, {"model": state.model, "optimizer": state.opt_state}, step=int(state.step), identity=identity)
    for old in steps(directory)[:-keep]:
        # Renamed first: a kill in the middle of the deletion must not leave half a checkpoint that looks whole.
        gone = directory / f"{DEBRIS}{old:08d}"
        os.replace(directory / f"{_PREFIX}{old:08d}", gone)
        shutil.rmtree(gone)
    return target


def export_final(folder: Path, state: TrainState, *, identity: Mapping[str, Any]) -> Path:
    """Write the model alone into `folder`, replacing what is there; the form in which a model is promoted."""
    _write(folder, {"model": state.model}, step=int(state.step), identity=identity)
    return folder


def steps(directory: Path) -> list[int]:
    """The steps of the checkpoints in `directory`, oldest first."""
    names = (folder.name.removeprefix(_PREFIX) for folder in directory.glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in names if name.isdecimal())


def clean(directory: Path) -> None:
    """Remove what a killed process left behind: unfinished writes and half deleted checkpoints."""
    for debris in directory.glob(f"{DEBRIS}*"):
        shutil.rmtree(debris)


def newest_identity(directory: Path) -> dict[str, Any]:
    """The identity of the run whose newest checkpoint stands in `directory`, unchecked; empty if there is none."""
    found = steps(directory)
    return _read_json(directory / f"{_PREFIX}{found[-1]:08d}" / META).get("identity", {}) if found else {}


def restore(directory: Path, like: TrainState, *, identity: Mapping[str, Any]) -> TrainState | None:
    """The state of the newest checkpoint in `directory`; `None` when there is none.

    A damaged newest checkpoint is refused rather than passed over: a kill cannot damage one, so something else did,
    and a person should know. The message says which earlier one would continue the run.

    Args:
        directory: the folder of this run's checkpoints.
        like: a state of the same structure, shapes and types; abstract leaves will do.
        identity: as given to `save`.

    Raises:
        CheckpointError: if a file is damaged, missing or was added.
        ConfigError: if the checkpoint belongs to another configuration or other data; names the keys that differ.
    """
    found = steps(directory)
    if not found:
        return None
    folder = directory / f"{_PREFIX}{found[-1]:08d}"
    try:
        verify(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_way_on(directory, found)}") from None
    meta = _read_json(folder / META)
    differences = diff(meta["identity"], plain(identity))
    if differences:
        keys = "; ".join(f"{key}: checkpoint {old!r}, now {new!r}" for key, (old, new) in differences.items())
        raise ConfigError(f"{folder}: belongs to another run ({keys}); use another directory, or put the values back")
    made, now = {"device": meta.get("device"), **meta.get("versions", {})}, {"device": _device(), **_versions()}
    if made != now:
        changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in diff(made, now).items())
        warnings.warn(f"{folder}: made elsewhere ({changes}): the run goes on, but not bit for bit", stacklevel=2)
    model = _restore_tree(folder / "model", like.model)
    opt_state = _restore_tree(folder / "optimizer", like.opt_state)
    step = _place(jax.ShapeDtypeStruct((), like.step.dtype))
    return TrainState(
        model=model, opt_state=opt_state, step=jax.device_put(meta["step"], step.sharding).astype(step.dtype)
    )


def load_model(folder: Path, config: ModelConfig) -> DeepSeek:
    """The model of a checkpoint or an export, checked against its manifest first.

    Raises:
        CheckpointError: if a file is damaged, missing or was added.
        ConfigError: if the checkpoint holds a model of another shape; names the keys that differ.
    """
    verify(folder)
    stored = _read_json(folder / META)["identity"].get("model", {})
    differences = diff(stored, plain(config))
    if differences:
        keys = "; ".join(f"model.{key}: checkpoint {old!r}, now {new!r}" for key, (old, new) in differences.items())
        raise ConfigError(f"{folder}: holds another model ({keys})")
    return _restore_tree(folder / "model", abstract(config))


def verify(folder: Path) -> str:
    """Check every file of a checkpoint against its manifest.

    Returns:
        the manifest's digest, which identifies the contents.

    Raises:
        CheckpointError: naming the first file that is damaged, missing or not listed.
    """
    manifest = _read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or manifest.get("digest") != digest(files):
        raise CheckpointError(f"{folder / MANIFEST}: damaged (its digest does not match its list of files)")
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name in sorted(files.keys() | present.keys() - {MANIFEST}):
        if name not in present:
            raise CheckpointError(f"{folder / name}: missing, although the manifest lists it")
        if name not in files:
            raise CheckpointError(f"{folder / name}: not listed in the manifest, so it was added afterwards")
        if sha256_file(present[name]) != files[name]:
            raise CheckpointError(f"{folder / name}: damaged (its SHA-256 is not that of the manifest)")
    return manifest["digest"]


def _versions() -> dict[str, str]:
    return {"jax": jax.__version__, "orbax": ocp.__version__}


def _device() -> str:
    return jax.devices()[0].device_kind


def _write(target: Path, trees: Mapping[str, Any], *, step: int, identity: Mapping[str, Any]) -> None:
    """Write trees, meta and manifest beside `target`, flush them to the disk, and move them into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{DEBRIS}{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, tree in trees.items():
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
            writer.save((temporary / name).resolve(), args=ocp.args.StandardSave(_by_name(tree)))
    meta = {"schema": 1, "step": step, "identity": plain(identity), "versions": _versions(), "device": _device()}
    (temporary / META).write_text(canonical(meta) + "\n")
    files = {path.relative_to(temporary).as_posix(): sha256_file(path) for path in _files(temporary)}
    (temporary / MANIFEST).write_text(canonical({"files": files, "digest": digest(files)}) + "\n")
    for path in (*_files(temporary), *(p for p in temporary.rglob("*") if p.is_dir()), temporary):
        flush(path)
    if target.exists():  # an export that is made anew; checkpoints are never overwritten
        gone = target.parent / f"{DEBRIS}old-{target.name}"
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(target, gone)
        os.replace(temporary, target)
        shutil.rmtree(gone)
    else:
        os.replace(temporary, target)
    flush(target.parent)


def _restore_tree(folder: Path, like: T) -> T:
    """The tree that was saved in `folder`, in the structure, shapes and types of `like`."""
    wanted = {name: _place(leaf) for name, leaf in _by_name(like).items()}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        try:
            arrays = reader.restore(folder.resolve(), args=ocp.args.StandardRestore(wanted))
        except ValueError as error:
            raise CheckpointError(f"{folder}: does not fit this model ({str(error).splitlines()[0]})") from error
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _place(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _way_on(directory: Path, found: list[int]) -> str:
    newest = directory / f"{_PREFIX}{found[-1]:08d}"
    for step in reversed(found[:-1]):
        try:
            verify(directory / f"{_PREFIX}{step:08d}")
        except CheckpointError:
            continue
        return f"delete {newest} to continue from step {step}, whose checkpoint is whole"
    return f"no earlier checkpoint is whole: delete {directory} to start again"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except ValueError:
        raise CheckpointError(f"{path}: damaged (not JSON)") from None
