"""The demo from end to end with the smallest network."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from ssmvdm import cli
from ssmvdm.config import TemporalConfig, UNet3DConfig
from ssmvdm.data.source import DataConfig
from ssmvdm.reproduce import demo
from ssmvdm.run_log import read_log
from ssmvdm.training_config import TrainingConfig

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def test_the_demo_leaves_samples_a_curve_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SAMPLE_STEPS", 2)
    network = UNet3DConfig(base_channels=8, channel_mults=(1,), temporal=TemporalConfig(heads=1, dim_head=8))
    config = TrainingConfig(network, data=DataConfig("maze", 2, 8), steps=2, sample_every=0)
    assert demo.demo(config, tmp_path) == tmp_path / "report.html"

    with Image.open(tmp_path / "samples.gif") as samples:
        assert samples.n_frames == 2
        assert samples.width == demo.SAMPLES * samples.height
    assert ElementTree.parse(tmp_path / "loss.svg").getroot().tag.endswith("svg")
    report = (tmp_path / "report.html").read_text()
    assert "trained for 2 steps of 1 maze walks of 2 frames of 8×8 pixels" in report
    assert report.count("data:image/gif;base64,") == 3

    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(json.dumps(record | {"seconds": 123.0}) + "\n" for record in read_log(log)))
    again = demo.demo(config, tmp_path).read_text()  # trains nothing
    assert "8×8 pixels, in 246 s." in again
    assert "wall clock" not in again

    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "has a run of another configuration: network.base_channels was 8 and is 16, " in capsys.readouterr().err
