"""Files of torch.save: tensors come out, and nothing else that a pickle can ask for is done."""

import os
import pickle
import zipfile

import pytest
import torch

from ssmvdm.data.torch_files import load_tensors


def call_of(module, name, argument):
    """A pickle that calls module.name(argument)."""
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "mkdir"),
        ("posix", "mkdir"),
        ("builtins", "exec"),
        ("builtins", "open"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("subprocess", "run"),
        ("shutil", "rmtree"),
        ("numpy", "load"),
        ("pathlib", "Path"),
    ],
)
def test_a_pickle_that_calls_anything_is_refused(tmp_path, module, name):
    """In the old form of torch.save, where the file begins with the pickle, and in the new one, an archive with it."""
    argument = tmp_path / "trace"
    planted = call_of(module, name, argument)
    for content in (planted, torch_archive(tmp_path, planted)):
        path = tmp_path / "a.pt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"not a file of tensors and nothing else: it asks for (\w+\.)*{name}$"):
            load_tensors(path)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "whole.pt"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04abc", pickle.dumps({"a": 1}, 4)], ids=str)
def test_what_torch_did_not_write_is_refused_without_its_advice(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"nothing else: it is damaged or of another format$"):
        load_tensors(tmp_path / "a.pt")


def torch_archive(folder, planted):
    """What torch.save writes, its pickle replaced."""
    torch.save(torch.zeros(2), folder / "whole.pt")
    with zipfile.ZipFile(folder / "whole.pt") as whole, zipfile.ZipFile(folder / "a.pt", "w") as archive:
        for entry in whole.infolist():
            archive.writestr(entry, planted if entry.filename.endswith("data.pkl") else whole.read(entry))
    return (folder / "a.pt").read_bytes()


def test_tensors_and_plain_containers_are_loaded(tmp_path):
    content = {"step": 3, "ema": {"weight": torch.arange(6.0).reshape(2, 3)}, "names": ["a", None, 1.5]}
    torch.save(content, tmp_path / "a.pt")
    loaded = load_tensors(tmp_path / "a.pt")
    assert torch.equal(loaded["ema"].pop("weight"), content["ema"].pop("weight"))
    assert loaded == content
