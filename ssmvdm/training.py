"""Training: clips, noise, the loss, Adam, the averaged weights, and a checkpoint now and then.

A run is a function of its configuration and the number of processes. Step k sees examples whose numbers follow from k,
an example follows from the seed and its number, and there is no other randomness. So a run that is killed and resumed
arrives at the same bits as one that was not. Devices, processes, mixed precision and accumulation are accelerate's.
"""

import json
import math
import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import Tensor
from tqdm import tqdm

from ssmvdm import checkpoint, sharding
from ssmvdm.blocks import PreNormResidual, ResBlock
from ssmvdm.checkpoint import State
from ssmvdm.data.export import replacing, write_gif
from ssmvdm.data.files import FileSource
from ssmvdm.data.source import ClipSource, open_source
from ssmvdm.ema import averaged
from ssmvdm.errors import sizes_from_outside
from ssmvdm.examples import Example, Examples, Numbers, batches, open_condition
from ssmvdm.lock import only_one
from ssmvdm.process_memory import GIB, resident_bytes
from ssmvdm.run_log import RunLog, read_log
from ssmvdm.sampling import sample_videos
from ssmvdm.training_config import TrainingConfig
from ssmvdm.unet3d import UNet3D

PRECISION_OF_ACCELERATE = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# What a run may change when it is resumed: nothing that its weights at a given step depend on, nor the number of its
# processes. Sharded, a step sees the same clips and is rounded otherwise. The same data may lie somewhere else by now.
FREE = (
    "steps", "workers", "log_every", "checkpoint_every", "sample_every", "keep", "samples", "sample_steps", "sharded",
    "data.path", "data.embeddings", "data.max_unusable",
)  # fmt: skip


class NonFiniteError(ArithmeticError):
    """The loss or the gradient of a step is not finite; the weights are those before the step."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the step was finished and a checkpoint written, which the message names."""


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = True,
    progress: bool = True,
    on_step: Callable[[dict], None] | None = None,
) -> Path:
    """Train up to config.steps and return the last checkpoint, a folder for `ssmvdm.checkpoint.load_model`.

    folder: of the run; it gets checkpoints/step-N, log.jsonl, samples/step-N.gif and, where TensorBoard is installed,
        tensorboard/. A run that is there already goes on from its newest whole checkpoint; with resume=False it is an
        error. on_step is called after each step with its log record. A step that met files it could not use has them in
        its record, "path: reason" under "left_out", once.
    Under torchrun or `accelerate launch` each process calls this; the first one writes.

    Raises ValueError where another call trains in `folder`, or if the run there has another configuration or number of
    processes, or if more of its data is unusable than config.data.max_unusable allows;
    CheckpointError if none of its checkpoints can be used, NonFiniteError, and Interrupted.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        if folder.exists():
            stack.enter_context(only_one(folder))  # before anything is read that another call may take away
            run = Run(config, folder, resume)
        else:
            run = Run(config, folder, resume)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_one(folder))
        return _train(run, progress, on_step)


def _train(run: "Run", progress: bool, on_step: Callable[[dict], None] | None) -> Path:
    config = run.config
    run.make_up_samples()
    if run.step >= config.steps:
        return checkpoint.step_path(run.checkpoints, run.step)
    log = RunLog(run.folder, run.step) if run.is_main else None
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=not (progress and run.is_main))
    try:
        with _asked_to_stop() as is_asked:
            while run.step < config.steps:
                record, is_stopping = run.advance(is_asked())
                bar.set_postfix_str(_summary(record), refresh=False)
                bar.update()
                is_due = run.step % config.log_every == 0 or run.step == config.steps
                if log is not None and (is_due or "left_out" in record):
                    log.write(record)
                if "left_out" in record:
                    run.check_left_out()
                if on_step is not None:
                    on_step(record)
                run.keep(is_stopping, log)
                if is_stopping and run.step < config.steps:
                    path = checkpoint.step_path(run.checkpoints, run.step)
                    raise Interrupted(
                        f"stopped after step {run.step} of {config.steps}; the same command goes on from {path}"
                    )
    finally:
        bar.close()
        if log is not None:
            log.close()
    return checkpoint.step_path(run.checkpoints, run.step)


class Run:
    """A run at one step: network, averages, optimizer, and the examples seen so far."""

    def __init__(self, config: TrainingConfig, folder: Path, resume: bool = True):
        self.config, self.folder, self.checkpoints = config, folder, folder / "checkpoints"
        source = open_source(config.data)
        self.examples = Examples(
            source, config.seed, config.diffusion.timesteps, open_condition(config, source), config.focus_present
        )
        self.accelerator = accelerator = _accelerator(config)
        found = _found(config, self.checkpoints, resume, accelerator.num_processes)
        self.is_main, device = accelerator.is_main_process, accelerator.device
        self.diffusion = config.diffusion.process()
        with torch.random.fork_rng(devices=()), sizes_from_outside():
            torch.manual_seed(config.seed)
            self.network = UNet3D(config.network)
        if not config.sharded:  # else each part goes to the device by itself: the whole may not fit there
            self.network.to(device)
        self.ema = averaged(self.network, config.ema_decay)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, betas=(0.9, 0.999))
        # Neither parallel training nor torch.compile puts other parameters into `network`: it stays what is trained.
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        if config.sharded:
            sharding.take_parts(self.ema.module, self.network)
            self.ema.to(device)
        self.step = self.examples_seen = 0
        self.left_out: set[str] = set()  # files that no process could use, with the reason, as far as logged
        if found is not None:
            self._restore(found)
            self.left_out |= _left_out_before(self.folder, self.step, source)
        self._batches = batches(self.examples, self._numbers(), config.workers, device.type == "cuda")
        self.examples_per_step = config.batch * config.accumulate * accelerator.num_processes

    def advance(self, is_asked_to_stop: bool) -> tuple[dict, bool]:
        """One optimizer step: its log record, and whether any process was asked to stop."""
        config, accelerator, start = self.config, self.accelerator, time.perf_counter()
        total, left_out = torch.zeros((), device=accelerator.device), set()
        for _ in range(config.accumulate):
            with accelerator.accumulate(self.model):
                batch = next(self._batches)
                left_out |= set(batch.left_out) - self.left_out
                loss = self._loss(batch.examples)
                accelerator.backward(loss)
                total += loss.detach()
        # A limit of infinity leaves the gradient as it is, to the bit, and gives its norm all the same.
        norm = sharding.whole(accelerator.clip_grad_norm_(self.network.parameters(), config.clip_norm or math.inf))
        # One exchange per step: what all processes must agree on. It is also the step's only wait for the device.
        counts = (torch.full_like(total, count) for count in (is_asked_to_stop, len(left_out)))
        told = torch.stack((total / config.accumulate, norm.float(), *counts))
        loss_value, norm_value, asked, found = accelerator.reduce(told, "mean").tolist()
        # Mixed precision in fp16 meets infinite gradients as a matter of course: its scaler leaves such a step out.
        if not math.isfinite(loss_value) or (accelerator.scaler is None and not math.isfinite(norm_value)):
            self._report(loss_value, norm_value)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.network)
        self.step += 1
        self.examples_seen += self.examples_per_step
        record = {
            "step": self.step,
            "examples": self.examples_seen,
            "loss": loss_value,
            "gradient_norm": norm_value if math.isfinite(norm_value) else None,
            "seconds": time.perf_counter() - start,
            "memory_bytes": _memory_bytes(accelerator.device),
        }
        if found:  # by any process
            record["left_out"] = sorted(set(gather_object(list(left_out))))
            self.left_out.update(record["left_out"])
        return record, asked > 0

    def keep(self, is_stopping: bool, log: RunLog | None) -> None:
        """Checkpoint and samples, where it is time for them."""
        config, is_last = self.config, self.step == self.config.steps
        if is_stopping or is_last or self.step % config.checkpoint_every == 0:
            state = self._state()
            if log is not None:
                log.sync()  # the lines up to a checkpoint are there if the checkpoint is
                checkpoint.save(self.checkpoints, state, config.keep)
            self.accelerator.wait_for_everyone()
        if self._is_time_for_samples():
            self._make_samples()

    def check_left_out(self) -> None:
        """Each loading process counts its own files alone: ValueError where all of them have left out too many."""
        source = self.examples.source
        if isinstance(source, FileSource):
            source.check_share(len(self.left_out), max(self.left_out))

    def make_up_samples(self) -> None:
        """The sheet of the step the run goes on from, if it was killed before that was there. All processes call this
        together."""
        if self.step and self._is_time_for_samples() and not self._sheet().exists():
            self._make_samples()
        self.accelerator.wait_for_everyone()

    def _make_samples(self) -> None:
        network = self._averaged_network()
        if self.is_main:
            self.write_samples(network)

    def _is_time_for_samples(self) -> bool:
        every = self.config.sample_every
        return every > 0 and (self.step == self.config.steps or self.step % every == 0)

    def _sheet(self) -> Path:
        return self.folder / "samples" / f"step-{self.step}.gif"

    def write_samples(self, network: UNet3D) -> Path:
        """folder/samples/step-N.gif, a few videos of the network; of one with a condition, under those
        of the first examples."""
        config, data = self.config, self.config.data
        steps = min(config.sample_steps, config.diffusion.timesteps)
        numbers = () if self.examples.condition is None else range(config.samples)
        cond = torch.stack([self.examples[n].cond for n in numbers]) if numbers else None
        videos = sample_videos(
            network, self.diffusion, config.samples, data.frames, data.size, sampler="ddim", steps=steps,
            seed=config.seed, batch=config.batch, cond=cond,
        )  # fmt: skip
        path = self._sheet()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gif(path, np.stack(list(videos)))
        return path

    def _numbers(self) -> Numbers:
        """Of the examples that are next for this process."""
        accelerator = self.accelerator
        return Numbers(self.examples_seen, self.config.batch, accelerator.process_index, accelerator.num_processes)

    def _loss(self, batch: Example) -> Tensor:
        on_device = (tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch)
        x0, t, noise, cond, cond_drop, focus_present = on_device
        shown = {} if self.examples.condition is None else {"cond": cond, "cond_drop": cond_drop}
        if self.config.focus_present:
            shown["focus_present"] = focus_present
        return self.diffusion.training_loss(self.model, x0, t, noise, **shown)

    def _averaged_network(self) -> UNet3D:
        """With the averaged weights. Sharded, all processes call this together and the main one has a whole copy."""
        if not self.config.sharded:
            return self.ema.module
        weights = sharding.gathered(self.ema.module.state_dict(), self.is_main)
        with torch.device("meta"):
            network = UNet3D(self.config.network)
        if self.is_main:
            network.to_empty(device=self.accelerator.device).load_state_dict(weights)
        return network

    def _state(self) -> State:
        """Sharded, all processes call this together and only the main one has the tensors."""
        moments = self.optimizer.optimizer.state
        return State(
            config=self.config,
            step=self.step,
            examples=self.examples_seen,
            model=sharding.gathered(self.network.state_dict(), self.is_main),
            ema=sharding.gathered(self.ema.module.state_dict(), self.is_main),
            optimizer=sharding.gathered(
                {
                    f"{name}.{key}": moments[parameter][key]
                    for name, parameter in self.network.named_parameters()
                    for key in checkpoint.MOMENTS
                },
                self.is_main,
            ),
            scaler={} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            processes=self.accelerator.num_processes,
        )

    def _restore(self, state: State) -> None:
        self.step, self.examples_seen = state.step, state.examples
        for network, weights in ((self.network, state.model), (self.ema.module, state.ema)):
            held = network.state_dict()
            network.load_state_dict({name: sharding.part(weights[name], held[name]) for name in held})
        self.ema.n_averaged.fill_(state.step)
        for name, parameter in self.network.named_parameters():
            moments = {key: state.optimizer[f"{name}.{key}"].clone() for key in checkpoint.MOMENTS}
            # Adam keeps its step count on the CPU.
            self.optimizer.optimizer.state[parameter] = {
                key: value if key == "step" else sharding.part(value, parameter) for key, value in moments.items()
            }
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)

    @torch.no_grad()
    def _report(self, loss: float, norm: float) -> None:
        """Write what is known of a step that is not finite, the loss of each example of this process too, and raise."""
        numbers = chain.from_iterable(islice(self._numbers(), self.config.accumulate))
        losses = {}
        for number in numbers:
            losses[number] = self._loss(Example(*(tensor[None] for tensor in self.examples[number]))).item()
        first, last = self.examples_seen, self.examples_seen + self.examples_per_step - 1
        report = {
            "step": self.step + 1,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "examples": [first, last],
            "loss_of_example": {number: str(value) for number, value in losses.items()},
        }
        path = self.folder / f"not-finite-{self.step + 1}-{self.accelerator.process_index}.json"
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="ascii")
        guilty = [number for number, value in losses.items() if not math.isfinite(value)]
        raise NonFiniteError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}; examples {first} to {last}, of which "
            f"{guilty or 'none alone'} have no finite loss; see {path}"
        )


def _found(config: TrainingConfig, checkpoints: Path, resume: bool, processes: int) -> State | None:
    """The state to go on from, if the folder has one, checked against the configuration and the processes."""
    if not resume:
        if checkpoint.step_folders(checkpoints):
            raise ValueError(f"{checkpoints.parent} has a run, and it is not to be resumed: choose another folder")
        return None
    loaded = checkpoint.load_newest(checkpoints)
    if loaded is None:
        return None
    for reason in loaded.refused:
        warnings.warn(f"{loaded.path} is resumed; a newer one is refused: {reason}", stacklevel=4)
    ours, theirs = _fields(asdict(config)), _fields(asdict(loaded.state.config))
    changed = [name for name in ours if name not in FREE and ours[name] != theirs[name]]
    if changed:
        told = ", ".join(f"{name} was {theirs[name]!r} and is {ours[name]!r}" for name in changed)
        raise ValueError(f"{checkpoints.parent} has a run of another configuration: {told}")
    if loaded.state.processes not in (None, processes):
        run = f"{checkpoints.parent} has {loaded.state.processes}, and a step depends on their number"
        raise ValueError(f"processes: the run in {run}; got {processes}")
    if loaded.state.step > config.steps:
        raise ValueError(f"steps: the run in {checkpoints.parent} is at {loaded.state.step}, got {config.steps}")
    return loaded.state


def _left_out_before(folder: Path, step: int, source: ClipSource) -> set[str]:
    """What the log of the run says of files that `source` still has."""
    if not isinstance(source, FileSource):
        return set()
    names = {str(video) for video in (*source.training, *source.held_out)}
    records = (record for record in read_log(folder / "log.jsonl") if record["step"] <= step)
    told = {entry for record in records for entry in record.get("left_out", ())}
    return {entry for entry in told if not names.isdisjoint(accumulate(entry.split(": "), "{}: {}".format))}


def _fields(config: dict, place: str = "") -> dict:
    """The configuration without its nesting: {"seed": 0, "data.name": "maze", ...}."""
    fields: dict = {}
    for name, value in config.items():
        fields |= _fields(value, f"{place}{name}.") if isinstance(value, dict) else {f"{place}{name}": value}
    return fields


def _accelerator(config: TrainingConfig) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it processes on the CPU would not know of each other
        mixed_precision=PRECISION_OF_ACCELERATE[config.precision],
        gradient_accumulation_steps=config.accumulate,
        dynamo_backend="inductor" if config.compile else "no",
        fsdp_plugin=_sharding() if config.sharded else None,
    )
    if config.sharded and accelerator.distributed_type != DistributedType.FSDP:  # accelerate would train without it
        came = f"{accelerator.num_processes} on {accelerator.device.type}"
        raise ValueError(f"sharded: needs several processes with a GPU each, and this is a run of {came}")
    if config.precision == "fp16" and accelerator.scaler is None:  # accelerate would compute in float32
        raise ValueError(f"precision: fp16 needs a GPU, and this is a run on {accelerator.device.type}; bf16 does not")
    return accelerator


def _sharding() -> FullyShardedDataParallelPlugin:
    """A block at a time is whole."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[ResBlock.__name__, PreNormResidual.__name__],
        cpu_ram_efficient_loading=False,  # every process makes the same network, on the CPU
    )


def _summary(record: dict) -> str:
    memory = record["memory_bytes"]
    return f"loss {record['loss']:.4f}" + ("" if memory is None else f", {memory / GIB:.1f} GiB")


def _memory_bytes(device: torch.device) -> int | None:
    """Largest memory in use on a GPU so far; on the CPU the process's memory now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come. The first one is only noted; a second one does what it always did."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set  # only the main thread can have handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: types.FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield event.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
