"""Checkpoints made to harm: all are refused with a reason, none runs anything, and an older whole one is read instead.

Their manifests are right: whoever makes such a file makes the manifest too.
"""

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save as to_safetensors

from ssmvdm import checkpoint
from ssmvdm.checkpoint import EMA, FACTS, FILES, MANIFEST, MODEL, OPTIMIZER, CheckpointError
from tests.training.tiny import same, state

SENTINEL = "ran"


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, folder):
        self.path = os.path.join(folder, SENTINEL)

    def __reduce__(self):
        return (open, (self.path, "w"))


class Forger:
    """Changes a whole checkpoint and makes its manifest right again."""

    def __init__(self, path):
        self.path, self.outside = path, path.parent.parent
        self.manifest = json.loads((path / MANIFEST).read_bytes())

    def put(self, name: str, content: bytes) -> None:
        (self.path / name).write_bytes(content)
        self.manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.sign()

    def sign(self) -> None:
        (self.path / MANIFEST).write_bytes(checkpoint._json(self.manifest))

    def facts(self, **changes) -> None:
        self.put(FACTS, checkpoint._json(json.loads((self.path / FACTS).read_bytes()) | changes))

    def config(self, change) -> None:
        config = json.loads((self.path / FACTS).read_bytes())["config"]
        change(config)
        self.facts(config=config)

    def tensors(self, name: str, change) -> None:
        tensors = dict(state(2).model if name != OPTIMIZER else state(2).optimizer)
        change(tensors)
        self.put(name, to_safetensors(tensors))

    def replace(self, name: str, make) -> None:
        """Something else in the place of a file, with the file itself beside it, outside."""
        target = self.outside / "target"
        (self.path / name).rename(target)
        make(self.path / name, target)

    def pickled(self) -> bytes:
        return pickle.dumps(Payload(self.outside))

    def zipped(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"model": Payload(self.outside)}, buffer)
        return buffer.getvalue()


def _rename_entry(forger: Forger, name: str) -> None:
    forger.manifest["files"][name] = forger.manifest["files"].pop(MODEL)
    forger.sign()


def _extra(forger: Forger, name: str, content: bytes) -> None:
    (forger.path / name).write_bytes(content)


def _link_folder(forger: Forger) -> None:
    target = forger.outside / "elsewhere"
    forger.path.rename(target)
    forger.path.symlink_to(target)


def _sparse(forger: Forger, name: str) -> None:
    with open(forger.path / name, "wb") as file:
        file.truncate(2**31)


HOSTILE = {
    "pickle for model": lambda f: f.put(MODEL, f.pickled()),
    "pickle of torch.save for averages": lambda f: f.put(EMA, f.zipped()),
    "pickle of torch.save for moments": lambda f: f.put(OPTIMIZER, f.zipped()),
    "pickle for facts": lambda f: f.put(FACTS, f.pickled()),
    "pickle for manifest": lambda f: (f.path / MANIFEST).write_bytes(f.pickled()),
    "pickle beside": lambda f: _extra(f, "model.pt", f.zipped()),
    "code beside": lambda f: _extra(f, "sitecustomize.py", f"open({str(f.outside / SENTINEL)!r}, 'w')".encode()),
    "compressed zeros for model": lambda f: f.put(MODEL, gzip.compress(bytes(2**24))),
    "a path upwards in the manifest": lambda f: _rename_entry(f, "../target"),
    "an absolute path in the manifest": lambda f: _rename_entry(f, "/etc/passwd"),
    "a link for model": lambda f: f.replace(MODEL, lambda path, target: path.symlink_to(target)),
    "a link for the manifest": lambda f: f.replace(MANIFEST, lambda path, target: path.symlink_to(target)),
    "a link for the folder": _link_folder,
    "a pipe for model": lambda f: f.replace(MODEL, lambda path, target: os.mkfifo(path)),
    "a folder for model": lambda f: f.replace(MODEL, lambda path, target: path.mkdir()),
    "2 GiB of nothing for facts": lambda f: _sparse(f, FACTS),
    "2 GiB of nothing for the manifest": lambda f: _sparse(f, MANIFEST),
    "deeply nested facts": lambda f: f.put(FACTS, b"[" * 2**19),
    "a deeply nested manifest": lambda f: (f.path / MANIFEST).write_bytes(b'{"files":' * 2**16),
    "a number of a million digits": lambda f: f.put(FACTS, b"9" * 10**6),
    "sizes that are no numbers": lambda f: (f.manifest["files"][MODEL].update(bytes="12"), f.sign()),
    "files that are a list": lambda f: (f.manifest.update(files=[*FILES]), f.sign()),
    "another step in the manifest": lambda f: (f.manifest.update(step=7), f.sign()),
    "another step in the facts": lambda f: f.facts(step=7),
    "examples that are text": lambda f: f.facts(examples="__import__('os')"),
    "a scaler with other names": lambda f: f.facts(scaler={"__class__": 1}),
    "a scaler that is no number": lambda f: f.facts(scaler=dict.fromkeys(checkpoint.SCALER, math.nan)),
    "processes that are text": lambda f: f.facts(processes="2"),
    "no processes": lambda f: f.facts(processes=0),
    "a configuration that is a list": lambda f: f.facts(config=["network"]),
    "a field that does not exist": lambda f: f.config(lambda c: c.update(__class__="os.system")),
    "an unknown field of the network": lambda f: f.config(lambda c: c["network"].update(__init__=1)),
    "a layer that is a list": lambda f: f.config(lambda c: c["network"]["temporal"].update(layer=["bi-s6"])),
    "a temporal layer that is text": lambda f: f.config(lambda c: c["network"].update(temporal="bi-s6", memory=None)),
    "a switch that is text": lambda f: f.config(lambda c: c["network"].update(spatial_linear_attention="no")),
    "heads that are text": lambda f: f.config(lambda c: c["network"]["temporal"].update(heads="8")),
    "a network beyond all memory": lambda f: f.config(lambda c: c["network"].update(base_channels=10**18)),
    "a network of terabytes": lambda f: f.config(lambda c: c["network"].update(base_channels=2**20)),
    "a data set that is a path": lambda f: f.config(lambda c: c["data"].update(name="../../etc")),
    "a header longer than the file": lambda f: f.put(MODEL, struct.pack("<Q", 2**63 - 1) + b"{}"),
    "offsets beyond the file": lambda f: f.put(MODEL, _tensor_beyond()),
    "a tensor of another shape": lambda f: f.tensors(MODEL, lambda t: t.update({"output_conv.bias": torch.zeros(4)})),
    "a tensor of another type": lambda f: f.tensors(
        EMA, lambda t: t.update({"output_conv.bias": torch.zeros(3, dtype=torch.float64)})
    ),
    "a tensor too many": lambda f: f.tensors(MODEL, lambda t: t.update({"../x": torch.zeros(1)})),
    "a tensor too few": lambda f: f.tensors(OPTIMIZER, lambda t: t.pop("output_conv.bias.exp_avg")),
}


def _tensor_beyond() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("attack", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_checkpoint_runs_nothing_and_is_refused_with_a_reason(tmp_path, attack):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, state(1))
    path = checkpoint.save(folder, state(2))
    attack(Forger(path))
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load(path)
    assert str(path) in str(refusal.value) and len(str(refusal.value)) > len(str(path)) + 10
    found = checkpoint.load_newest(folder)
    assert same(found.state, state(1)) and found.refused == (str(refusal.value),)
    assert not (tmp_path / SENTINEL).exists()


def test_a_forged_configuration_is_no_model(tmp_path):
    path = checkpoint.save(tmp_path, state(2))
    Forger(path).config(lambda c: c["network"].update(temporal="bi-s6", memory=None))
    with pytest.raises(CheckpointError, match="config: temporal must be a TemporalConfig, got 'bi-s6'"):
        checkpoint.load_model(path)


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path))).close()
    assert (tmp_path / SENTINEL).exists()
