"""torch.compile, torch.export, meta and fake tensors, opcheck: what PyTorch may assume about the operators is true."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmvdm_kernels import (
    available_backends,
    bidirectional_conv1d,
    bidirectional_selective_scan,
    explain,
    extensions,
    selective_scan,
)
from ssmvdm_kernels.operators import COMPILED
from ssmvdm_kernels.ops import BOTH, CAT, FORWARD, MEAN, REVERSE, SUM, ConvTensors, ScanTensors

from .cases import Case

needs_cpu = pytest.mark.skipif("cpu" not in available_backends(), reason="the cpu extension is not built")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]


def tensors(has_gradients=True, **options):
    named = Case(**options).inputs()
    leaves = {n: t if t is None else t.detach().requires_grad_(has_gradients) for n, t in named.items()}
    return ScanTensors(**leaves)


def given(scan_tensors):
    return {name: tensor for name, tensor in scan_tensors._asdict().items() if tensor is not None}


def conv_tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 2, generator=generator).to(dtype)
    filters = (torch.randn(*shape, generator=generator) for shape in ((3, 4), (3,), (3, 4), (3,)))
    return ConvTensors(*(t.requires_grad_() for t in (x, *filters)))


# -- opcheck -----------------------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("layout", ["lanes", "channels", "mixed"])
@pytest.mark.parametrize("direction,merge", [(FORWARD, SUM), (REVERSE, SUM), (BOTH, SUM), (BOTH, MEAN), (BOTH, CAT)])
def test_opcheck_scan_forward(direction, merge, layout):
    is_both = direction == BOTH
    arguments = tensors(direction="both" if is_both else "forward", initial=not is_both, layout=layout)
    torch.library.opcheck(COMPILED.scan_forward, (*arguments, direction, merge, True, not is_both))


@needs_cpu
@pytest.mark.parametrize("form", ["groups", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck_scan_forward_by_form_and_dtype(form, dtype):
    arguments = tensors(B_form=form, C_form=form, dtype=dtype)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(COMPILED.scan_forward, (*arguments, BOTH, SUM, False, False), test_utils=checks)


@needs_cpu
@pytest.mark.parametrize("needs", [(1 << 16) - 1, 0b1000000000100101, 1])
@pytest.mark.parametrize("layout", ["lanes", "channels", "mixed", "expanded"])
def test_opcheck_scan_backward(needs, layout):
    arguments = tensors(False, direction="forward", initial=True, layout=layout, B_form="groups", C_form="groups")
    dy = torch.randn_like(arguments.u)
    dlast_state = torch.randn_like(arguments.initial_state)
    call = (dy, dlast_state, *arguments, FORWARD, SUM, True, needs)
    torch.library.opcheck(COMPILED.scan_backward, call, test_utils=("test_schema", "test_faketensor"))


@needs_cpu
@pytest.mark.parametrize("direction", [FORWARD, REVERSE, BOTH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_convolution(direction, dtype):
    arguments = conv_tensors(dtype)
    torch.library.opcheck(COMPILED.conv1d_forward, (*arguments, direction, True))
    plain = [tensor.detach() for tensor in arguments]
    dy, dy_b = (torch.ones_like(out) for out in COMPILED.conv1d_forward(*plain, direction, True))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(COMPILED.conv1d_backward, (dy, dy_b, *plain, direction, True, 0b11111), test_utils=checks)


# -- compile and export ------------------------------------------------------------------------------------------------


def scan_and_gate(u, delta, A, B, C, z, backend):
    y, y_b = bidirectional_conv1d(u, A, backend=backend)
    y = bidirectional_selective_scan(
        y, delta, A, B, C, z=z, u_b=y_b, delta_softplus=True, merge="mean", backend=backend
    )
    y, last_state = selective_scan(y, delta, A, B, C, return_last_state=True, reverse=True, backend=backend)
    return y + 1, last_state


def batch_of(size, has_gradients=True):
    generator = torch.Generator().manual_seed(size)
    shapes = ((size, 4, 3, 3), (size, 4, 3, 3), (4, 2), (size, 2, 3, 3), (size, 2, 3, 3), (size, 4, 3, 3))
    return [torch.randn(*s, generator=generator).requires_grad_(has_gradients) for s in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_break_and_with_few_recompiles(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(scan_and_gate, backend=counter, fullgraph=True)
    for size in range(1, 11):
        arguments = batch_of(size)
        outputs, expected = compiled(*arguments, backend), scan_and_gate(*arguments, backend)
        torch.testing.assert_close(outputs, expected)
        gradients = [torch.autograd.grad(y.square().sum() + last.sum(), arguments) for y, last in (outputs, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 3


@needs_cpu
def test_compile_chooses_the_backend_by_itself():
    torch._dynamo.reset()
    arguments = batch_of(2)
    compiled = torch.compile(scan_and_gate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments, "auto"), scan_and_gate(*arguments, "cpu"))


@needs_cpu
@pytest.mark.slow
def test_compile_with_inductor_agrees_with_eager():
    torch._dynamo.reset()
    arguments = batch_of(2, has_gradients=False)
    compiled = torch.compile(scan_and_gate, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments, "cpu"), scan_and_gate(*arguments, "cpu"))


def test_compile_under_autocast():
    torch._dynamo.reset()
    arguments = batch_of(2, has_gradients=False)
    compiled = torch.compile(scan_and_gate, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = compiled(*arguments, "reference")
        torch.testing.assert_close(outputs, scan_and_gate(*arguments, "reference"))
    assert outputs[0].dtype == torch.bfloat16


def test_compile_raises_the_same_errors():
    torch._dynamo.reset()
    arguments = batch_of(2, has_gradients=False)
    arguments[1] = arguments[1][..., :2]
    with pytest.raises(Exception, match="delta must have the shape of u"):
        torch.compile(scan_and_gate, backend="eager", fullgraph=True)(*arguments, "reference")


def test_compile_falls_back_with_a_warning(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setitem(extensions.problems, "_C", "This installation has no compiled _C extension.")
    monkeypatch.setattr("ssmvdm_kernels.backends._warned_of", set())
    monkeypatch.delenv("SSMVDM_STRICT", raising=False)
    compiled = torch.compile(scan_and_gate, backend="eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="only the slow reference"):
        compiled(*batch_of(2, has_gradients=False), "auto")


class Scan(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, u, delta, A, B, C, z):
        return scan_and_gate(u, delta, A, B, C, z, self.backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_export_round_trip_with_dynamic_batch(backend):
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = [None if tensor.dim() == 2 else {0: batch} for tensor in batch_of(2)]
    program = torch.export.export(Scan(backend), tuple(batch_of(2, False)), dynamic_shapes=tuple(dynamic))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    arguments = batch_of(5, has_gradients=False)
    torch.testing.assert_close(loaded(*arguments), scan_and_gate(*arguments, backend))


# -- without data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["lanes", "length", "channels", "mixed"])
@pytest.mark.parametrize("merge", ["sum", "cat", "none"])
def test_meta_tensors_have_forward_and_backward(layout, merge):
    named = {n: t.to("meta").detach().requires_grad_() for n, t in given(tensors(layout=layout)).items()}
    y = bidirectional_selective_scan(**named, delta_softplus=True, merge=merge)
    sum(part.sum() for part in (y if merge == "none" else (y,))).backward()
    for name, tensor in named.items():
        assert (tensor.grad.shape, tensor.grad.device.type) == (tensor.shape, "meta"), name


def test_meta_tensors_of_the_convolution_and_of_one_direction():
    named = {n: t.to("meta").detach().requires_grad_() for n, t in given(tensors(direction="forward")).items()}
    y, last_state = selective_scan(**named, return_last_state=True)
    assert y.shape == named["u"].shape and last_state.shape == (2, 6, 4, 3)
    (y.sum() + last_state.sum()).backward()
    conv = [tensor.detach().to("meta").requires_grad_() for tensor in conv_tensors()]
    y, y_b = bidirectional_conv1d(*conv[:3], weight_b=conv[3], bias_b=conv[4])
    (y.sum() + y_b.sum()).backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in conv)


def test_terabytes_on_meta_cost_nothing():
    u = torch.empty(1024, 896, 256, 256, 256, device="meta", dtype=torch.bfloat16)
    B = torch.empty(1024, 16, 256, 256, 256, device="meta", dtype=torch.bfloat16)
    assert bidirectional_selective_scan(u, u, torch.empty(896, 16, device="meta"), B, B).shape == u.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_tensors(backend):
    with FakeTensorMode():
        arguments = batch_of(2)
        assert f"takes {backend}" in explain(arguments[0], backend=backend)
        y, last_state = scan_and_gate(*arguments, backend)
        (y.sum() + last_state.sum()).backward()
    assert y.shape == (2, 4, 3, 3) and last_state.shape == (2, 4, 2, 3)


@needs_cpu
@pytest.mark.parametrize(
    "layout", ["lanes", "length", "channels", "mixed", "expanded", "narrowed", "stepped", "offset"]
)
def test_fake_layouts_are_the_real_ones(layout):
    real = tensors(has_gradients=False, layout=layout)
    options = (BOTH, SUM, True)
    dy = COMPILED.scan_forward(*real, *options, False)[0]
    found = (dy, *COMPILED.scan_backward(dy, None, *real, *options, (1 << 15) - 1))
    with FakeTensorMode() as mode:
        fake = [tensor if tensor is None else mode.from_tensor(tensor) for tensor in real]
        fake_dy = COMPILED.scan_forward(*fake, *options, False)[0]
        predicted = (fake_dy, *COMPILED.scan_backward(fake_dy, None, *fake, *options, (1 << 15) - 1))
    for got, expected in zip(found, predicted, strict=True):
        assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)
