"""Video data. `maze` and `moving_shapes` are computed from a seed and need no download; both have
`clips(seed, batch, frames, size) -> (batch, 3, frames, size, size)` float32 in [0, 1]."""
