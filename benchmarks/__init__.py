"""Benchmarks: memory and time against frames, and the scan against its rivals. Part of the installed package, because
`ssmvdm bench` runs it; importing it imports neither torch nor matplotlib nor rich."""
