"""The loader of I3D's file, the features it gives, and their cache. No I3D weights are needed."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssmvdm.errors import InputError
from ssmvdm.evaluation.features import CachedFeatures
from ssmvdm.evaluation.i3d import load_i3d
from ssmvdm.evaluation.i3d_network import I3D
from tests.evaluation import stand_in

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the form that FVD's file has
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return stand_in.write(tmp_path_factory.mktemp("i3d") / "i3d.pt")


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.random.default_rng(0).random((3, 3, 6, 16, 16), dtype=np.float32)


def test_features_are_the_logits_averaged_over_time(file, videos):
    said = []
    features = load_i3d(file, say=said.append).features(videos)
    clip = torch.from_numpy(videos).double() * 2.0 - 1.0
    frames = nn.functional.interpolate(clip.flatten(0, 1), size=(6, 224, 224)[1:], mode="bilinear").unflatten(0, (3, 3))
    pooled = frames.square().mean(dim=(3, 4)) + frames.mean(dim=(3, 4))
    weight = stand_in.StandIn().weight.detach().double()
    expected = nn.functional.conv1d(pooled, weight).mean(dim=2)
    # float32 throughout: pairwise sums over 224 x 224 pixels and 12 products, of numbers of size 1.
    bound = (np.log2(224 * 224) + 12) * EPS * 2.0 * weight.abs().sum(dim=(1, 2)).max()
    assert features.dtype == np.float64 and features.shape == (3, 5)
    assert np.abs(features - expected.numpy()).max() <= bound
    assert len(said) == 1 and str(file) in said[0] and "is a program" in said[0]


def test_each_row_depends_on_its_video_only(file, videos):
    extractor = load_i3d(file, say=lambda text: None)
    assert np.array_equal(extractor.features(videos)[1:2], extractor.features(videos[1:2]))


def test_the_two_scalings_give_different_features_names_and_identities(file, videos):
    standard, paper = (load_i3d(file, scaling, say=lambda text: None) for scaling in ("standard", "paper"))
    assert not np.allclose(standard.features(videos), paper.features(videos))
    plain = np.broadcast_to(np.arange(4.0, 10.0, dtype=np.float32)[:, None, None] / 16.0, videos.shape)  # exact in both
    assert np.array_equal(standard.features(plain), paper.features(2.0 * plain - 1.0))
    assert standard.identity != paper.identity and standard.name != paper.name
    with pytest.raises(ValueError, match="scaling must be one of standard, paper, got 'both'"):
        load_i3d(file, "both", say=lambda text: None)


def test_other_weights_have_another_identity(file, tmp_path):
    other = load_i3d(stand_in.write(tmp_path / "other.pt", seed=1), say=lambda text: None)
    assert other.identity != load_i3d(file, say=lambda text: None).identity


def test_too_few_frames_are_an_input_error(file, videos):
    with pytest.raises(InputError, match="cannot take clips of 3 frames"):
        load_i3d(file, say=lambda text: None).features(videos[:, :, :3])


class NoLogits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_module_that_returns_no_logits_is_an_input_error(tmp_path, videos):
    torch.jit.script(NoLogits()).save(str(tmp_path / "other.pt"))
    with pytest.raises(InputError, match=r"must return logits .*, got \(1, 3, 6, 224, 224\)"):
        load_i3d(tmp_path / "other.pt", say=lambda text: None).features(videos)


class Plain(nn.Module):
    """Without switches, as a traced file is, and with time averaged inside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3, 4))


class NotFinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3, 4)) / 0.0


class Headless(nn.Module):
    @torch.jit.export
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_logits_that_are_not_finite_and_a_module_without_forward_are_input_errors(tmp_path, videos):
    for name, module in (("broken.pt", NotFinite()), ("headless.pt", Headless())):
        torch.jit.script(module).save(str(tmp_path / name))
    with pytest.raises(InputError, match="not finite for a clip of 6 frames"):
        load_i3d(tmp_path / "broken.pt", say=lambda text: None).features(videos)
    with pytest.raises(InputError, match="a TorchScript module without forward"):
        load_i3d(tmp_path / "headless.pt", say=lambda text: None)


def test_a_file_without_switches_is_called_with_the_clip_alone(tmp_path, videos):
    torch.jit.script(Plain()).save(str(tmp_path / "plain.pt"))
    features = load_i3d(tmp_path / "plain.pt", "paper", say=lambda text: None).features(videos)
    bound = np.log2(6 * 224 * 224) * EPS + EPS  # of a float32 sum in pairs, and of the interpolation
    assert np.abs(features - videos.mean(axis=(2, 3, 4), dtype=np.float64)).max() <= bound


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """A state dict of I3D with statistics as training leaves them: no channel dies out, none is at 0 and 1."""
    torch.manual_seed(0)
    state = I3D().state_dict()
    for name, value in state.items():
        if name.endswith("bn.weight"):
            nn.init.uniform_(value, 1.0, 2.0)
        elif name.endswith(("bn.bias", "running_mean")):
            nn.init.normal_(value, 0.0, 0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.2, 0.6)
    return state


def spelt_out(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """I3D's logits from its description: Inception-v1 (Szegedy et al., table 1) with cubes for squares, "SAME" pads."""

    def padded(x, kernel, stride):
        for axis in range(2, 5):
            k, s, size = kernel[axis - 2], stride[axis - 2], x.shape[axis]
            total = max(0, (-(-size // s) - 1) * s + k - size)
            shape = list(x.shape)
            shape[axis] = total // 2
            front = x.new_zeros(shape)
            shape[axis] = total - total // 2
            x = torch.cat((front, x, x.new_zeros(shape)), axis)
        return x

    def unit(x, name, stride=1):
        kernel = state[f"{name}.conv3d.weight"]
        y = nn.functional.conv3d(padded(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
        parts = ("weight", "bias", "running_mean", "running_var")
        gain, bias, mean, var = (state[f"{name}.bn.{part}"][:, None, None, None] for part in parts)
        return (gain * (y - mean) / (var + 0.001).sqrt() + bias).clamp(min=0)

    def pooled(x, kernel, stride):
        return nn.functional.max_pool3d(padded(x, kernel, stride), kernel, stride)

    def mixed(x, name):
        squares = unit(unit(x, f"{name}.b1a"), f"{name}.b1b"), unit(unit(x, f"{name}.b2a"), f"{name}.b2b")
        return torch.cat((unit(x, f"{name}.b0"), *squares, unit(pooled(x, (3,) * 3, (1,) * 3), f"{name}.b3b")), 1)

    x = pooled(unit(x, "Conv3d_1a_7x7", stride=2), (1, 3, 3), (1, 2, 2))
    x = pooled(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    x = pooled(mixed(mixed(x, "Mixed_3b"), "Mixed_3c"), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = mixed(x, f"Mixed_4{letter}")
    x = mixed(mixed(pooled(x, (2, 2, 2), (2, 2, 2)), "Mixed_5b"), "Mixed_5c")
    x = torch.stack([x[:, :, t : t + 2].mean(dim=(2, 3, 4)) for t in range(x.shape[2] - 1)], 1)  # (b, time, 1024)
    return (x @ state["logits.conv3d.weight"].flatten(1).t() + state["logits.conv3d.bias"]).mT


def test_the_network_is_i3d(weights):
    network = I3D().eval()
    network.load_state_dict(weights)
    assert sum(p.numel() for p in network.parameters()) == 12_697_264  # with 400 classes
    x = torch.rand(1, 3, 17, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        found, wanted = network(x), spelt_out(weights, x)
    assert found.shape == (1, 400, 2) and wanted.std() > 0.01
    # Some 40 layers, each a sum of up to 2.6e4 products in some order: far below what one wrong stride or pad does.
    assert (found - wanted).abs().max() <= 1e3 * EPS * wanted.abs().max()


def test_weights_without_a_program(weights, tmp_path, videos):
    clips = np.concatenate([videos[:1], videos[1:2]], axis=2)  # 12 frames
    files = {"plain": weights, "parallel": {f"module.{name}": value for name, value in weights.items()},
             "old": {name: value for name, value in weights.items() if "num_batches" not in name}}  # fmt: skip
    network = I3D().eval()
    network.load_state_dict(weights)
    frames = nn.functional.interpolate(torch.from_numpy(clips[0]).transpose(0, 1), size=(224, 224), mode="bilinear")
    with torch.inference_mode():
        wanted = network((frames.transpose(0, 1) * 2 - 1)[None]).double().mean(dim=2).numpy()
    for name, state in files.items():
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "old")
        said = []
        extractor = load_i3d(tmp_path / name, say=said.append)
        assert np.array_equal(extractor.features(clips), wanted)
        assert len(said) == 1 and "weights of" in said[0] and "is a program" not in said[0]
    with pytest.raises(InputError, match="cannot take clips of 6 frames"):
        extractor.features(videos[:1])


def test_weights_of_another_network_are_refused(weights, tmp_path):
    def without(state, name):
        return {key: value for key, value in state.items() if key != name}

    few, head = torch.zeros(3), torch.zeros(600)
    for message, state in {
        "tensors of it are missing: 1, first Mixed_4f.b0.conv3d.weight": without(weights, "Mixed_4f.b0.conv3d.weight"),
        "tensors are none of it: 1, first fc.weight": weights | {"fc.weight": few},
        r"logits.conv3d.bias must have the shape \(400,\), but has \(600,\)": weights | {"logits.conv3d.bias": head},
        "expected tensors by name": [few],
    }.items():
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(InputError, match=message):
            load_i3d(tmp_path / "wrong.pt", say=lambda text: None)


class Mark:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Toucher(nn.Module):
    """A TorchScript program that would create a file."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = str(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file(self.path, True, 16)[0]


def hostile_files(folder: Path, mark: Path, good: bytes) -> dict[str, str]:
    """Writes them; name -> what the refusal says."""
    (folder / "pickle.pt").write_bytes(pickle.dumps(Mark(mark), protocol=2))
    torch.save({"weights": Mark(mark)}, folder / "saved.pt")
    torch.save({"weights": Mark(mark)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(Toucher(mark)).save(str(folder / "toucher.pt"))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("not weights")
    (folder / "half.pt").write_bytes(good[: len(good) // 2])
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        code = next(member for member in archive.infolist() if member.filename.endswith(".py"))
    flipped = bytearray(good)
    names = sum(struct.unpack_from("<HH", good, code.header_offset + 26))  # its name and padding, then its content
    flipped[code.header_offset + 30 + names + code.compress_size // 2] ^= 0x20
    (folder / "flipped.pt").write_bytes(flipped)
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with zipfile.ZipFile(folder / "code.pt", "w") as archive:
        archive.writestr("m/code/__torch__.py", "class StandIn(Module):\n  pass\n")
    with zipfile.ZipFile(folder / "operators.pt", "w") as archive:
        archive.writestr("m/code/__torch__.py", "def f(x):\n  return ops.system.run(x)\n")
    with zipfile.ZipFile(folder / "twice.pt", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("m/code/__torch__.py", "class StandIn(Module):\n  pass\n")
    return {
        "pickle.pt": "got neither: .* is not a file of tensors and nothing else",
        "saved.pt": "got neither: .* is not a file of tensors and nothing else",
        "legacy.pt": "got neither: .* is not a file of tensors and nothing else",
        "toucher.pt": r"calls torch\.from_file",
        "empty.pt": r"I3D network as TorchScript \(torch.jit.save\) or its weights \(torch.save\), got neither",
        "text.pt": "expected the I3D network as TorchScript",
        "half.pt": "expected the I3D network as TorchScript",
        "flipped.pt": "got something else",
        "zip.pt": "got neither: .* is not a file of tensors and nothing else",
        "code.pt": "cannot read this TorchScript file",
        "operators.pt": r"calls ops\.system\.run",
        "twice.pt": "two members of one name",
        "missing.pt": "cannot read the I3D file",
        ".": "cannot read the I3D file",
    }


def test_hostile_and_wrong_files_are_refused_and_run_nothing(file, tmp_path):
    mark = tmp_path / "mark"
    for name, message in hostile_files(tmp_path, mark, file.read_bytes()).items():
        said = []
        with pytest.raises(InputError, match=message):
            load_i3d(tmp_path / name, say=said.append)
        assert not mark.exists(), name
        assert not said or name == "code.pt"  # nothing is announced that will not be run
    with open(tmp_path / "pickle.pt", "rb") as stream:
        pickle.load(stream).close()
    assert mark.exists()  # so the file would have


def test_cache_computes_each_video_once_for_each_extractor(file, videos, tmp_path):
    def cached(scaling: str) -> CachedFeatures:
        return CachedFeatures(load_i3d(file, scaling, say=lambda text: None), tmp_path)

    first = cached("standard")
    whole = first.features(videos)
    assert (first.hits, first.misses) == (0, 3)
    first.save()
    second = cached("standard")
    changed = videos.copy()
    changed[1] = 1.0 - changed[1]
    again = second.features(changed[::-1])
    assert (second.hits, second.misses) == (2, 1)
    assert np.array_equal(again[[0, 2]], whole[[2, 0]]) and not np.array_equal(again[1], whole[1])
    other = cached("paper")
    other.features(videos)
    assert (other.hits, other.misses) == (0, 3)


def test_two_processes_that_save_keep_what_both_found(file, videos, tmp_path):
    one, two = (CachedFeatures(load_i3d(file, say=lambda text: None), tmp_path) for _ in range(2))
    one.features(videos[:1])
    two.features(videos[1:])
    one.save()
    two.save()
    both = CachedFeatures(load_i3d(file, say=lambda text: None), tmp_path)
    both.features(videos)
    assert (both.hits, both.misses) == (3, 0)


@pytest.mark.parametrize("damage", ["half", "empty", "other arrays", "nan", "objects"])
def test_a_damaged_cache_is_reported_and_computed_again(file, videos, tmp_path, damage):
    cache = CachedFeatures(load_i3d(file, say=lambda text: None), tmp_path)
    expected = cache.features(videos)
    cache.save()
    content = cache.path.read_bytes()
    if damage in ("half", "empty"):
        cache.path.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    elif damage == "other arrays":
        np.savez(cache.path, keys=np.zeros((3, 32), np.uint8))
    elif damage == "objects":
        np.savez(cache.path, keys=np.array([Mark(tmp_path / "mark")] * 3), features=expected)
    else:
        np.savez(cache.path, keys=np.zeros((3, 32), np.uint8), features=np.full((3, 5), np.nan))
    with pytest.warns(UserWarning, match="is damaged"):
        again = CachedFeatures(cache.extractor, tmp_path)
    assert np.array_equal(again.features(videos), expected)
    assert again.misses == 3 and not (tmp_path / "mark").exists()
