"""Frechet video distance: features of the I3D network that was trained on Kinetics-400.

The weights are a file that the user supplies; nothing is downloaded. It is a state dict, or TorchScript. A TorchScript
file is a program, not data: `load_i3d` is the only place that runs one. It says which file it is about to run, and
refuses, before torch sees it, an archive whose code reads or writes files or calls operators that torch does not have.

Each video goes in whole, every frame resized to 224 x 224; its features are the 400 logits, averaged over time where
the file leaves time in. Published numbers rest on inputs in [-1, 1] ("standard"); the code of the paper that this
package follows feeds [0, 1] ("paper"), so its numbers compare with each other only.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ssmvdm.data.torch_files import load_tensors
from ssmvdm.errors import InputError
from ssmvdm.evaluation.i3d_network import with_weights

SIZE = 224  # pixels that the network takes
SCALINGS: dict[str, Callable[[Tensor], Tensor]] = {"standard": lambda x: 2.0 * x - 1.0, "paper": lambda x: x}
# What the common file calls its switches, and how FVD sets them: input as it is, logits instead of probabilities.
SWITCHES = {"rescale": False, "resize": False, "return_features": True}
FORBIDDEN_CALL = re.compile(
    r"(?<![\w.])(?:torch|ops\.aten)\.(?:save|load|from_file)\b|(?<![\w.])ops\.(?!(?:aten|prim|prims)\b)[\w.]+"
)
CODE = re.compile(r"(^|/)code/.*\.py$")  # its place in the archive
MAX_CODE_BYTES = 1 << 26


class I3DFeatures:
    """A FeatureExtractor. module: as `load_i3d` returns it. weights_sha256: of its file. scaling: "standard" or
    "paper"."""

    stamp = None

    def __init__(self, module: nn.Module, weights_sha256: str, scaling: str = "standard", device="cpu"):
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")
        self.name = "FVD (I3D, standard)" if scaling == "standard" else "FVD (I3D, inputs in [0, 1] as in the paper)"
        self.module, self.scaling, self.device = module.to(device).eval(), scaling, torch.device(device)
        self.switches = {name: value for name, value in SWITCHES.items() if name in _arguments(module)}
        self.details = {"weights_sha256": weights_sha256, "scaling": scaling, "size": SIZE}
        self.identity = hashlib.sha256(json.dumps(self.details, sort_keys=True).encode()).hexdigest()

    @torch.inference_mode()
    def features(self, videos: np.ndarray) -> np.ndarray:
        return np.concatenate([self._features(video) for video in videos])

    def _features(self, video: np.ndarray) -> np.ndarray:
        """(1, d) of one video (3, frames, height, width): 256 frames of 224 x 224 are 150 MB before any layer."""
        frames = torch.from_numpy(np.array(video, np.float32).swapaxes(0, 1)).to(self.device)  # (frames, 3, h, w)
        frames = interpolate(frames, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        clip = SCALINGS[self.scaling](frames).transpose(0, 1)[None]  # (1, 3, frames, 224, 224)
        try:
            logits = self.module(clip.contiguous(), **self.switches)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"the I3D file cannot take clips of {video.shape[1]} frames: {reason}") from error
        is_vector = isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() in (2, 3)
        if not is_vector or len(logits) != 1:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the I3D file must return logits (1, classes) or (1, classes, time), got {got}")
        if not logits.isfinite().all():
            raise InputError(f"the I3D file gave logits that are not finite for a clip of {video.shape[1]} frames")
        logits = logits.double()
        return (logits.mean(dim=2) if logits.dim() == 3 else logits).cpu().numpy()


def load_i3d(path: Path, scaling: str = "standard", device="cpu", say: Callable[[str], None] = print) -> I3DFeatures:
    """The user's file of I3D as a feature extractor: TorchScript, or a state dict under the names of `i3d_network.I3D`.
    `say` is told what is used, before any of it is run.

    Raises InputError for a file that is missing, is neither of the two, or whose code touches files.
    """
    try:
        content = path.read_bytes()  # once: what is checked is what runs
    except OSError as error:
        raise InputError(f"cannot read the I3D file {path}: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    file = f"{path} ({len(content) / 2**20:.1f} MiB, SHA-256 {digest})"
    if _is_program(content):
        _audit(path, content)
        say(f"I3D: running {file}. A TorchScript file is a program: use only files from people you trust.")
        return I3DFeatures(_run(path, content), digest, scaling, device)
    try:
        network = with_weights(load_tensors(path, content))
    except ValueError as error:
        raise InputError(f"{_expected(path)}, got neither: {error}") from error
    say(f"I3D: weights of {file}")
    return I3DFeatures(network, digest, scaling, device)


def _run(path: Path, content: bytes) -> torch.jit.ScriptModule:
    try:
        module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path}: torch {torch.__version__} cannot read this TorchScript file: {reason}") from error
    if not hasattr(module, "forward"):
        raise InputError(f"{path}: expected a network, got a TorchScript module without forward")
    return module


def _expected(path: Path) -> str:
    return f"{path}: expected the I3D network as TorchScript (torch.jit.save) or its weights (torch.save)"


def _is_program(content: bytes) -> bool:
    """Whether the file is an archive with TorchScript's code in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(CODE.search(member.filename) for member in archive.infolist())
    except zipfile.BadZipFile:
        return False


def _audit(path: Path, content: bytes) -> None:
    """InputError if any of the archive's code touches files."""
    expected = _expected(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise InputError(f"{expected}, got an archive with two members of one name")
            code = [member for member in members if CODE.search(member.filename)]
            if sum(member.file_size for member in code) > MAX_CODE_BYTES:
                raise InputError(f"{expected}, got more than {MAX_CODE_BYTES} bytes of code")
            for member in code:
                found = FORBIDDEN_CALL.search(archive.read(member).decode("utf-8", errors="replace"))
                if found:
                    raise InputError(f"{path} is refused: {member.filename} calls {found[0]}, no part of a network")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, encrypted, an unknown method
        raise InputError(f"{expected}, got something else: {error}") from error


def _arguments(module: nn.Module) -> list[str]:
    if not isinstance(module, torch.jit.ScriptModule):
        return []
    return [argument.name for argument in module.forward.schema.arguments]  # type: ignore[attr-defined]
