"""The smallest study that goes through everything."""

from ssmvdm.compared import Network
from ssmvdm.reproduce.study import Study

TOY = Study(
    network=Network(base_channels=8, size=8, channel_mults=(1, 2), dim_head=8),
    frames=4,
    batch=2,
    steps=3,
    learning_rate=1e-3,
    seeds=2,
    held_out=3,
    samples=3,
    sample_steps=2,
    real=4,
    feature_steps=2,
    cost_frames=(4, 8),
    cost_repeats=1,
    contenders=("s6", "bi-s6/glu", "bi-s6"),
)
