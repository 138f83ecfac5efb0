"""Video data. `source` opens any of it by name: clips computed from a seed, or videos on disk in the forms that
`datasets` lists. `maze` and `moving_shapes` need no download; both have `clips(seed, batch, frames, size)
-> (batch, 3, frames, size, size)` float32 in [0, 1]."""
