"""The commands of `ssmvdm`: one file each, with its options as a frozen dataclass (tyro makes flags and help of it) and
a `run(options)` that imports what it needs. Bad input is an InputError; `ssmvdm.cli` prints it as one line."""
