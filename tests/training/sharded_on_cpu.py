"""The command line with accelerate's FSDP switched on where accelerate itself leaves it off: processes on the CPU."""

import sys

import accelerate
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from ssmvdm import cli, training


class Accelerator(accelerate.Accelerator):
    def __init__(self, *, fsdp_plugin, **others):
        super().__init__(fsdp_plugin=fsdp_plugin, **others)
        self.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.state.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    training.Accelerator = Accelerator
    sys.exit(cli.main())
