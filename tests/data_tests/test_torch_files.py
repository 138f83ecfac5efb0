"""Files of torch.save: tensors come out, and nothing else that a pickle can ask for is done."""

import os
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
        with pytest.raises(ValueError, match="is not a file of tensors and nothing else"):
            load_tensors(path)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "whole.pt"]


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
