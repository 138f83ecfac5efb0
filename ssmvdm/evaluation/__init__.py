"""How far generated videos are from real ones: Frechet distances of features, statistics of frames, consistency over
time."""

from ssmvdm.evaluation.compare import evaluate
from ssmvdm.evaluation.features import NOT_COMPARABLE, CachedFeatures, FeatureExtractor
from ssmvdm.evaluation.frechet import frechet_distance
from ssmvdm.evaluation.i3d import I3DFeatures, load_i3d
from ssmvdm.evaluation.offline_features import OfflineFeatures

__all__ = [
    "NOT_COMPARABLE",
    "CachedFeatures",
    "FeatureExtractor",
    "I3DFeatures",
    "OfflineFeatures",
    "evaluate",
    "frechet_distance",
    "load_i3d",
]
