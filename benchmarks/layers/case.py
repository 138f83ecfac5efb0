"""One layer at one shape: what is called, and the gate of what the calls return.

All layers of a shape are given the same buffers, and layers that compute the same function the same weights. The gate
looks at two pixels, the first of the first row and the first of the last: pixels are independent of each other, so that
outputs and gradients there are those of a video of two pixels, which float64 can afford.
"""

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from benchmarks.layers.candidates import Candidate, Shape
from benchmarks.measure import eager
from benchmarks.measure.gate import Gate, layer_check
from ssmvdm import TemporalConfig
from ssmvdm.compared import PAPER_TEMPORAL
from ssmvdm.temporal import build_temporal_layer
from ssmvdm.temporal.attention import TemporalAttention, frame_heads

Run = Callable[[Tensor, Tensor | None], Tensor]  # of the video and the position bias
Tensors = dict[str, Tensor]


class Buffers:
    """What every layer of a shape is given: x and the gradient of its output, both (1, channels, frames, side, side),
    and, for those that add one, a position bias (heads, frames, frames)."""

    def __init__(self, shape: Shape, device: str):
        generator = torch.Generator(device).manual_seed(shape.frames)
        self._normal = partial(torch.randn, generator=generator, device=device)
        size = (1, shape.channels, shape.frames, shape.side, shape.side)
        self.x = self._normal(size).requires_grad_()
        self.dy = self._normal(size)

    @cached_property
    def bias(self) -> Tensor:
        frames = self.x.shape[2]
        return self._normal(PAPER_TEMPORAL["heads"], frames, frames).requires_grad_()


class Case:
    """A candidate at a shape. `inference()` -> y; `training()` -> y and the gradients of `leaves`, by their names."""

    def __init__(self, candidate: Candidate, buffers: Buffers):
        torch.manual_seed(0)
        self.candidate = candidate
        self.x, self.dy = buffers.x, buffers.dy
        self.bias = buffers.bias if candidate.has_bias else None
        memory = "fast" if candidate.form == "fast" else "lean"
        config = TemporalConfig(**PAPER_TEMPORAL, memory=memory, **candidate.temporal)
        self.layer = build_temporal_layer(self.x.shape[1], config).to(self.x.device)
        self.run = _FORMS[candidate.form](self.layer)
        own = {} if self.bias is None else {"position bias": self.bias}
        self.weights = {**dict(self.layer.named_parameters()), **own}

    def inference(self) -> Tensor:
        with torch.no_grad():
            return self.run(self.x, self.bias)

    def training(self) -> tuple[Tensor, Tensors]:
        return self.gradients(self.x, self.dy)

    def gradients(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensors]:
        leaves = {"x": x, **self.weights}
        y = self.run(x, self.bias)
        return y.detach(), dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))


def _published(layer: nn.Module) -> Run:
    """The authors' way: sequences copied out of the video, flips around the reverse direction, S4D by FFT, S6 by the
    loop that mamba-ssm falls back to where it has no kernel."""
    scan = partial(eager.selective_scan, steps_of=eager.by_index)
    weights = dict(layer.named_parameters())
    return partial(eager.temporal_layer, layer, weights=weights, scan=scan)


def _flex(layer: TemporalAttention) -> Run:
    """torch's FlexAttention, compiled, the bias added as a modification of the scores."""
    import torch._inductor.config
    from torch.nn.attention.flex_attention import flex_attention

    torch._inductor.config.compile_threads = 1  # a process of the benchmark must not have children of its own
    attend = torch.compile(flex_attention, dynamic=False)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        def biased(score, batch, head, query, key):
            return score + bias[head, query, key]

        b, _, f, h, w = x.shape
        q, k, v = frame_heads(x, layer.to_qkv.weight, layer.heads, layer.rotary)
        out = layer.to_out(attend(q, k, v, score_mod=biased).transpose(1, 2).flatten(-2))
        return out.view(b, h, w, f, -1).permute(0, 4, 3, 1, 2)

    return run


_FORMS: dict[str, Callable[..., Run]] = {
    "lean": lambda layer: layer,
    "fast": lambda layer: layer,
    "published": _published,
    "flex": _flex,
}


def two_pixels(video: Tensor) -> Tensor:
    """(b, c, f, h, w) -> (b, c, f, 2 or 1, 1), a view."""
    return video[..., :: max(1, video.shape[-2] - 1), :1]


def truths(case: Case) -> tuple[Tensors, Tensors]:
    """Output and gradients at the two pixels by the eager mathematics on the CPU: in float64 and, as yardstick, in
    float32."""
    found = []
    for dtype in (torch.float64, torch.float32):
        leaves = {name: leaf.detach().cpu().to(dtype).requires_grad_()
                  for name, leaf in {"x": two_pixels(case.x), **case.weights}.items()}  # fmt: skip
        x, bias = leaves["x"], leaves.get("position bias")
        y = eager.temporal_layer(case.layer, x, bias, weights=leaves)
        dy = two_pixels(case.dy).cpu().to(dtype)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        found.append({"output": y.detach()} | dict(zip(leaves, gradients, strict=True)))
    return found[0], found[1]


def gate(case: Case, mode: str, truth: tuple[Tensors, Tensors]) -> Gate:
    """Of one call as it is timed: its output and, of training, the gradient of x; then, as other pixels take part in
    those of the weights, these of a call on all pixels with an output gradient that is zero but at the two."""
    if mode == "inference":
        values = {"output": two_pixels(case.inference())}
    else:
        y, gradients = case.training()
        values = {"output": two_pixels(y), "x": two_pixels(gradients["x"])}
        dy = torch.zeros_like(case.dy)
        two_pixels(dy).copy_(two_pixels(case.dy))
        _, gradients = case.gradients(case.x, dy)
        values |= {name: gradients[name] for name in case.weights}
    checks = []
    for name, value in values.items():
        label = name if name == "output" else f"gradient of {name}"
        checks.append(layer_check(label, value.cpu(), truth[0][name], truth[1][name]))
    return Gate(tuple(checks))
