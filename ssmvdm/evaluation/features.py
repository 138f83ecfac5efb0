"""What turns videos into vectors for a Frechet distance, and a store of vectors that were computed before."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from ssmvdm.data.export import replacing

NOT_COMPARABLE = "not comparable with published FVD"


class FeatureExtractor(Protocol):
    """name: what the distance of these features is called in reports. stamp: a reservation that every number carries,
    None where there is none. identity: SHA-256 of all that the features depend on besides the video, as 64 digits.
    details: what a report says about it, ready for JSON."""

    name: str
    stamp: str | None
    identity: str
    details: dict

    def features(self, videos: np.ndarray) -> np.ndarray:
        """(n, d) of videos (n, 3, frames, height, width) in [0, 1]; each row depends on its own video only."""
        ...


class CachedFeatures:
    """An extractor that looks a video up, by the SHA-256 of its pixels, before it computes.

    One file per extractor's identity holds everything it has seen: whichever way a set of videos is put together, and
    however often an evaluation is stopped, no video goes through the network twice. `save` writes the file, whole or
    not at all, with what other processes have added to it in the meantime.

    hits, misses: videos that were found, and that were computed.
    """

    def __init__(self, extractor: FeatureExtractor, folder: Path):
        self.extractor = extractor
        self.name, self.stamp, self.identity = extractor.name, extractor.stamp, extractor.identity
        self.path = folder / f"{self.identity}.npz"
        self.hits = self.misses = 0
        self._known = self._load()

    @property
    def details(self) -> dict:
        return self.extractor.details | {"videos_from_cache": self.hits, "videos_computed": self.misses}

    def features(self, videos: np.ndarray) -> np.ndarray:
        keys = [_digest(video) for video in videos]
        missing = [i for i, key in enumerate(keys) if key not in self._known]
        if missing:
            computed = self.extractor.features(videos[missing])
            self._known |= {keys[i]: row for i, row in zip(missing, computed, strict=True)}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        return np.stack([self._known[key] for key in keys])

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        everything = self._load() | self._known
        if everything:
            keys = np.frombuffer(b"".join(everything), np.uint8).reshape(len(everything), -1)
            with replacing(self.path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, keys=keys, features=np.stack(list(everything.values())))
                stream.flush()
                os.fsync(stream.fileno())

    def _load(self) -> dict[bytes, np.ndarray]:
        """What the file holds; nothing, with a warning, from a file that is damaged."""
        if not self.path.exists():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                keys, features = stored["keys"], stored["features"]
            if keys.dtype != np.uint8 or keys.shape != (len(features), hashlib.sha256().digest_size):
                raise ValueError(f"keys {keys.dtype} {keys.shape}")
            if features.dtype != np.float64 or features.ndim != 2 or not np.isfinite(features).all():
                raise ValueError(f"features {features.dtype} {features.shape}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"the feature cache {self.path} is damaged ({error}): its features are computed again")
            return {}
        return {key.tobytes(): row for key, row in zip(keys, features, strict=True)}


def _digest(video: np.ndarray) -> bytes:
    digest = hashlib.sha256(repr((video.dtype.str, video.shape)).encode())
    digest.update(np.ascontiguousarray(video))
    return digest.digest()
