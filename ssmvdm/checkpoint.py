"""Checkpoints that survive what happens to them: a killed process, a full disk, lost power, flipped bits, forgery.

A checkpoint is a folder step-N of tensors (safetensors), facts (JSON) and a manifest with the size and SHA-256 of each
file. It is written as step-N.tmp; every file and the folder reach the disk before one rename gives it its name, and
older checkpoints go only after the new one has been read back and found whole. So a folder that is called step-N is
either complete or was damaged later, and the manifest tells which. Reading runs no code of the checkpoint's: no pickle,
no path that it names is followed, and what does not belong to the network it describes is refused with the reason.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ssmvdm.digests import file_digest
from ssmvdm.errors import named_when_full, sizes_from_outside
from ssmvdm.training_config import TrainingConfig
from ssmvdm.unet3d import UNet3D

MODEL, EMA, OPTIMIZER, FACTS = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
FILES = (MODEL, EMA, OPTIMIZER, FACTS)
MANIFEST = "manifest.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam, per parameter
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}  # of torch's GradScaler
FORMAT = 1
LARGEST_JSON = 1 << 20  # bytes that are read before anything is known about a file
STEP = re.compile(r"step-([0-9]{1,18})")
LEFT_OVER = re.compile(r"step-[0-9]{1,18}\.(tmp|old)")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not one; the message says which and why."""


@dataclass
class State:
    """Everything a run needs to go on. There are no generators to keep: what is drawn for a clip depends on the run's
    seed and the clip's number alone, so `examples`, the clips seen so far, is all of it.

    model, ema: weights by the network's names, float32. optimizer: "{name}.exp_avg", ".exp_avg_sq" and ".step".
    scaler: the loss scale of fp16 training and the counter it grows by. processes: that the run has, None if unknown.
    """

    config: TrainingConfig
    step: int
    examples: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    scaler: dict[str, float] = field(default_factory=dict)
    processes: int | None = None


class Loaded(NamedTuple):
    """A state, where it was found, and why newer checkpoints beside it were passed over."""

    path: Path
    state: State
    refused: tuple[str, ...]


# -- writing -----------------------------------------------------------------------------------------------------------


def save(folder: Path, state: State, keep: int = 2) -> Path:
    """Write folder/step-N and return it; of older checkpoints the newest `keep` - 1 stay.

    A whole checkpoint of that step is left as it is: a step is a function of the run. A damaged one is replaced.
    Raises OSError when the disk does not take it and CheckpointError when it does not give it back; in both cases the
    older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if LEFT_OVER.fullmatch(path.name):
            _discard(path)
    final = step_path(folder, state.step)
    is_damaged = os.path.lexists(final)
    if is_damaged and _complaint(final) is None:
        return final
    temporary = folder / f"{final.name}.tmp"
    try:
        _write_folder(temporary, state)
        if is_damaged:
            _remove(final)
        os.rename(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)  # its space may be what is missing
        raise
    _sync(folder)
    verify(final)
    for path in [path for path in step_folders(folder) if _number(path) < state.step][keep - 1 :]:
        _remove(path)
    return final


def _write_folder(folder: Path, state: State) -> None:
    folder.mkdir()
    files = {name: _write(folder / name, content) for name, content in _contents(state)}
    _write(folder / MANIFEST, _manifest(state.step, files))
    _sync(folder)


def _contents(state: State) -> Iterator[tuple[str, bytes]]:
    """One file at a time: the bytes of a large network are not all needed at once."""
    for name, tensors in ((MODEL, state.model), (EMA, state.ema), (OPTIMIZER, state.optimizer)):
        yield name, to_safetensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    facts = {
        "step": state.step, "examples": state.examples, "config": state.config.to_dict(), "scaler": state.scaler,
        "processes": state.processes,
    }  # fmt: skip
    yield FACTS, _json(facts)


def _json(value) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def _manifest(step, files) -> bytes:
    return _json({"format": FORMAT, "step": step, "files": files})


def _write(path: Path, content: bytes) -> dict:
    """The file on the disk, not only in its cache; returns its entry of the manifest, computed from `content`."""
    with named_when_full(path), open(path, "xb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(folder: Path) -> None:
    """The folder's entries on the disk: a rename is lost with the power otherwise."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """First out of sight in one rename, so that no half removed folder looks like a checkpoint."""
    old = path.with_name(f"{path.name}.old")
    os.rename(path, old)
    _discard(old)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# -- reading -----------------------------------------------------------------------------------------------------------


def step_folders(folder: Path) -> list[Path]:
    """What is called step-N in `folder`, newest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in paths if STEP.fullmatch(path.name)), key=_number, reverse=True)


def step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def verify(path: Path) -> None:
    """CheckpointError unless every file is there, is a plain file, and has the manifest's size and SHA-256."""
    if not stat.S_ISDIR(_status(path).st_mode):
        raise CheckpointError(f"{path}: expected a folder")
    for name in _names(path):
        if name not in (*FILES, MANIFEST):
            raise CheckpointError(f"{path / name}: does not belong to a checkpoint")
    content = _read_small(path / MANIFEST)
    entries = _entries(path / MANIFEST, content)
    step = json.loads(content)["step"]
    if STEP.fullmatch(path.name) and step != _number(path):
        raise CheckpointError(f"{path / MANIFEST}: is of step {step!r}")
    for name, entry in entries.items():
        size = _plain_file(path / name).st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path / name}: expected {entry['bytes']} bytes, got {size}")
        if _sha256(path / name) != entry["sha256"]:
            raise CheckpointError(f"{path / name}: its SHA-256 is not the manifest's, the file is damaged")


def _entries(path: Path, content: bytes) -> dict[str, dict]:
    """The manifest's entries. Written again they must give the very same bytes: so no byte of it may change."""
    manifest = _parsed(path, content)
    is_right = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    is_right = is_right and set(manifest["files"]) == set(FILES) and all(map(_is_entry, manifest["files"].values()))
    if not is_right or type(manifest.get("step")) is not int or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, a step, and size and SHA-256 of {', '.join(FILES)}")
    if content != _manifest(manifest["step"], manifest["files"]):
        raise CheckpointError(f"{path}: is damaged: it is not what was written")
    return manifest["files"]


def _is_entry(value) -> bool:
    is_right = isinstance(value, dict) and set(value) == {"bytes", "sha256"}
    return is_right and type(value["bytes"]) is int and type(value["sha256"]) is str


def load(path: Path) -> State:
    """The whole state of one step-N folder. Raises CheckpointError, naming the file, for anything that is not right."""
    verify(path)
    config, facts = _facts(path)
    network = _on_meta(path, config)
    weights = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    moments = {
        f"{name}.{moment}": () if moment == "step" else tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        for moment in MOMENTS
    }
    files = ((MODEL, weights), (EMA, weights), (OPTIMIZER, moments))
    tensors = (_tensors(path / name, shapes) for name, shapes in files)
    rest = {"scaler": facts["scaler"], "processes": facts.get("processes")}
    return State(config, facts["step"], facts["examples"], *tensors, **rest)


def load_newest(folder: Path) -> Loaded | None:
    """The newest whole checkpoint in `folder`, or None where there is none at all.

    Raises CheckpointError with every reason if there are checkpoints and all of them are refused.
    """
    refused: list[str] = []
    for path in step_folders(folder):
        try:
            return Loaded(path, load(path), tuple(refused))
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(refused))
    return None


def load_model(path: Path, weights: Literal["ema", "online"] = "ema") -> tuple[UNet3D, TrainingConfig]:
    """The network of a run in evaluation mode, on the CPU, and the run's configuration.

    path: a run's folder, its folder of checkpoints, or one checkpoint. Of several the newest whole one is taken, with a
        warning that names those passed over. weights: the averaged ones or those that were trained.
    Raises CheckpointError if there is none, or none that can be used.
    """
    if weights not in ("ema", "online"):
        raise ValueError(f"weights must be 'ema' or 'online', got {weights!r}")
    path = Path(path).resolve()  # a link that the caller names is followed, one inside a checkpoint is not
    refused: list[str] = []
    for folder in _candidates(path):
        try:
            model = _load_weights(folder, EMA if weights == "ema" else MODEL)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        if refused:
            warnings.warn(f"{folder} is read; newer ones are refused: {'; '.join(refused)}", stacklevel=2)
        return model
    raise CheckpointError("; ".join(refused) or f"{path}: there is no checkpoint")


def _candidates(path: Path) -> list[Path]:
    if os.path.lexists(path / MANIFEST):
        return [path]
    found = step_folders(path / "checkpoints") or step_folders(path)
    return [path] if STEP.fullmatch(path.name) and not found else found


def _load_weights(path: Path, name: str) -> tuple[UNet3D, TrainingConfig]:
    verify(path)
    config, _ = _facts(path)
    network = _on_meta(path, config)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    tensors = _tensors(path / name, shapes)
    network.to_empty(device="cpu").load_state_dict(tensors)  # copied: the file's tensors are mapped, not read
    return network.eval(), config


def _facts(path: Path) -> tuple[TrainingConfig, dict]:
    facts = _parsed(path / FACTS, _read_small(path / FACTS))
    if not isinstance(facts, dict) or set(facts) - {"processes"} != {"step", "examples", "config", "scaler"}:
        raise CheckpointError(f"{path / FACTS}: expected step, examples, config and scaler")
    for name in ("step", "examples"):
        if type(facts[name]) is not int or facts[name] < 0:
            raise CheckpointError(f"{path / FACTS}: {name}: expected a whole number, got {facts[name]!r:.80}")
    scaler = facts["scaler"]
    is_right = isinstance(scaler, dict) and (not scaler or set(scaler) == SCALER)
    if not is_right or not all(type(x) in (int, float) and 0 <= x < math.inf for x in scaler.values()):
        wanted = f"finite numbers {', '.join(sorted(SCALER))}"
        raise CheckpointError(f"{path / FACTS}: scaler: expected {wanted}, got {scaler!r:.80}")
    processes = facts.get("processes")
    if processes is not None and (type(processes) is not int or processes < 1):
        raise CheckpointError(f"{path / FACTS}: processes: expected a whole number, got {processes!r:.80}")
    if STEP.fullmatch(path.name) and facts["step"] != _number(path):
        raise CheckpointError(f"{path / FACTS}: is of step {facts['step']}")
    if not isinstance(facts["config"], dict):
        raise CheckpointError(f"{path / FACTS}: config: expected fields by name, got {facts['config']!r:.80}")
    try:
        return TrainingConfig.from_dict(facts["config"]), facts
    except ValueError as error:
        raise CheckpointError(f"{path / FACTS}: config: {error}") from error


def _on_meta(path: Path, config: TrainingConfig) -> UNet3D:
    try:
        with torch.device("meta"), sizes_from_outside():
            return UNet3D(config.network)
    except ValueError as error:
        raise CheckpointError(f"{path / FACTS}: config: no such network: {error}") from error


def _tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The file's tensors, which must be these, in float32."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    for name in sorted(set(tensors) ^ set(shapes)):
        raise CheckpointError(f"{path}: {'lacks' if name in shapes else 'has no use for'} {name!r:.80}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float32:
            came = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise CheckpointError(f"{path}: {name}: expected {shapes[name]} torch.float32, got {came}")
    return tensors


def _complaint(path: Path) -> str | None:
    """Why the checkpoint would be refused, None if it would not."""
    try:
        verify(path)
    except CheckpointError as error:
        return str(error)
    return None


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _status(path: Path) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _plain_file(path: Path) -> os.stat_result:
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: expected a plain file, not a link, a folder or a pipe")
    return status


def _read_small(path: Path) -> bytes:
    size = _plain_file(path).st_size
    if size > LARGEST_JSON:
        raise CheckpointError(f"{path}: expected at most {LARGEST_JSON} bytes, got {size}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error


def _sha256(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
