"""How far generated videos are from real ones: Frechet distances of features, statistics of frames, consistency over
time."""
