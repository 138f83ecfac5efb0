"""BidirectionalMamba: against the mixer spelt out, its two memory modes, its layouts, its initial values."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from ssmvdm_kernels import BidirectionalMamba, available_backends, mixing, selective_scan
from ssmvdm_kernels.modules import MambaMixer
from ssmvdm_kernels.operators import COMPILED

pytestmark = pytest.mark.filterwarnings("ignore:.*only the slow reference:RuntimeWarning")


def made(channels=6, seed=0, dtype=torch.float32, directions=2, **options):
    torch.manual_seed(seed)
    if directions == 1:
        return MambaMixer(channels, directions=1, **options).to(dtype)
    return BidirectionalMamba(channels, **options).to(dtype)


def video(shape=(2, 6, 5, 3, 2), seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def as_published(module, x):
    """The mixer as the paper's code arranges it: (batch, channels, length), flips around the reverse half if any."""
    batch, channels, length, *lanes = x.shape
    rows = x.movedim((1, 2), (-2, -1)).reshape(-1, channels, length)
    x_, z = F.linear(rows.mT, module.in_proj.weight, module.in_proj.bias).mT.chunk(2, 1)

    def s6(x_, own):
        width = own.conv_weight.shape[1]
        u = F.silu(F.conv1d(F.pad(x_, (width - 1, 0)), own.conv_weight[:, None], own.conv_bias, groups=x_.shape[1]))
        dt, B, C = own.x_proj(u.mT).mT.split(own.sizes, 1)
        delta = own.dt_proj(dt.mT).mT
        return selective_scan(u, delta, -own.A_log.exp(), B, C, own.D, None, own.dt_bias, True, backend="reference")

    y = s6(x_, module.causal)
    if module.anticausal is not None:
        y = y + s6(x_.flip(2), module.anticausal).flip(2)
    y = y * F.silu(z)
    out = F.linear(y.mT, module.out_proj.weight, module.out_proj.bias).mT
    return out.unflatten(0, (batch, *lanes)).movedim((-2, -1), (1, 2)) if lanes else out


def outcome(module, x):
    """Output, input gradient and parameter gradients of one weighted sum."""
    x = x.detach().requires_grad_()
    y = module(x) if isinstance(module, MambaMixer) else module[1](module[0], x)
    model = module if isinstance(module, MambaMixer) else module[0]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, *torch.autograd.grad((y * weights).sum(), (x, *model.parameters()))


@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 6, 9, 4), (2, 6, 5, 3, 2), (2, 6, 1, 2), (3, 6, 7, 1)])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_is_the_published_mixer(shape, bias, directions):
    module, x = made(dtype=torch.float64, bias=bias, directions=directions), video(shape, dtype=torch.float64)
    torch.testing.assert_close(outcome(module, x), outcome((module, as_published), x))


@pytest.mark.parametrize("operators", [True, False], ids=["formula", "checkpoint"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 6, 16, 4, 4), (2, 6, 16, 4, 4), (3, 6, 5), (1, 32, 40, 9, 5)])
def test_lean_and_fast_memory_agree_bit_for_bit(shape, dtype, directions, operators, monkeypatch):
    """By the formula, and by checkpointing where a backend lacks its operators."""
    if not operators:
        monkeypatch.setattr(mixing, "can_be_lean", lambda x: False)
    lean, fast = (made(shape[1], dtype=dtype, memory=memory, directions=directions) for memory in ("lean", "fast"))
    results = (outcome(module, video(shape, dtype=dtype)) for module in (lean, fast))
    assert all(torch.equal(got, expected) for got, expected in zip(*results, strict=True))


class CountScans(torch.utils._python_dispatch.TorchDispatchMode):
    """Calls of the scan's operators in its scope."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.forward += function is COMPILED.scan_forward
        self.backward += function is COMPILED.scan_backward
        return function(*arguments, **(options or {}))


def test_the_lean_backward_pass_runs_no_forward_scan():
    module, x = made(), video().to("meta").requires_grad_()
    with CountScans() as scans:
        y = module.to("meta")(x)
        assert (scans.forward, scans.backward) == (1, 0)
        y.sum().backward()
    assert (scans.forward, scans.backward) == (1, 1)


TRAINED = {
    "input": (),
    "input and all": ("",),
    "all": ("",),
    "out_proj": ("out_proj",),
    "in_proj": ("in_proj",),
    "decays and biases": ("A_log", "dt_bias", "D"),
    "projections of one direction": ("causal.x_proj", "causal.dt_proj"),
    "filters": ("conv_weight",),
}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("trained", TRAINED)
def test_the_lean_form_computes_the_gradients_that_are_needed(trained, directions):
    """The same bits as with fast memory, None for the others, and no backward scan where its results go nowhere."""
    x = video().requires_grad_(trained.startswith("input"))
    gradients, scans = [], []
    for memory in ("lean", "fast"):
        module = made(memory=memory, directions=directions)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(any(part in name for part in TRAINED[trained]))
        x.grad = None
        with CountScans() as counted:
            module(x).square().sum().backward()
        scans.append(counted.backward)
        gradients.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    assert scans[0] == scans[1] == (trained != "out_proj" and "cpu" in available_backends())
    for lean, fast in zip(*gradients, strict=True):
        assert (lean is None) == (fast is None) and (lean is None or torch.equal(lean, fast))


def test_a_second_derivative_of_the_lean_form_is_refused_in_words():
    if "cpu" not in available_backends():
        pytest.skip("the cpu extension is not built, and the reference can be differentiated twice")
    x = video().requires_grad_()
    (dx,) = torch.autograd.grad(made()(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has a first derivative only"):
        torch.autograd.grad(dx.sum(), x, retain_graph=True)  # which looks for x alone
    with pytest.raises(NotImplementedError, match="has a first derivative only"):
        dx.sum().backward()


def test_an_adapter_around_a_projection_is_refused_and_not_left_out():
    class Adapter(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        weight = property(lambda self: self.base_layer.weight)
        bias = property(lambda self: self.base_layer.bias)

    layer = BidirectionalMamba(4)
    layer.out_proj = Adapter(layer.out_proj)
    with pytest.raises(TypeError, match=r"BidirectionalMamba: out_proj must be a plain layer, .* but is a Adapter"):
        layer(torch.randn(1, 4, 3))
    with pytest.raises(TypeError, match="out_proj must be a plain layer"):
        layer.finish(torch.randn(1, 16, 3))


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_under_torch_func(memory):
    module, x = made(memory=memory), video((3, 2, 6, 5))
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    torch.testing.assert_close(torch.vmap(module)(x), torch.stack([module(sample) for sample in x]))
    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for index, sample in enumerate(x):
        wanted = torch.autograd.grad(loss(parameters, sample), list(parameters.values()))
        for name, w in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(found[name][index], w)


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_forward_mode_is_refused_in_words(memory):
    if "cpu" not in available_backends():
        pytest.skip("the cpu extension is not built, and the reference has forward mode")
    module, x = made(memory=memory), video()
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.jvp(module, (x,), (x,))
    with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
        torch.func.hessian(lambda x: module(x).sum())(x)


def saved_elements(module, x):
    """Elements kept for the backward pass: unique storages, parameters excluded."""
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (storage, storage.nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(x)
    return sum(size for _, size in kept.values()), y


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("batch", [1, 2])
def test_lean_memory_keeps_the_input_and_the_output_of_the_first_projection(device, batch):
    module = made().to(device)
    x = video((batch, 6, 16, 4, 4)).to(device).requires_grad_()
    lean, y = saved_elements(module, x)
    assert lean == 5 * x.numel()
    module.memory = "fast"
    assert saved_elements(module, x)[0] > 2 * lean
    y.sum().backward()
    assert x.grad.shape == x.shape


# Of the axes of a video, outermost first: video, channels last, sequences of pixels, frame by frame, two odd ones.
LAYOUTS = [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (0, 3, 4, 1, 2), (0, 2, 1, 3, 4), (2, 0, 1, 4, 3), (4, 3, 2, 1, 0)]


def in_order(x, order):
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(5)])


@pytest.mark.parametrize("order", LAYOUTS)
def test_any_layout_gives_the_same_numbers(order):
    module, x = made(dtype=torch.float64), video(dtype=torch.float64)
    torch.testing.assert_close(outcome(module, in_order(x, order)), outcome(module, x))


@pytest.mark.parametrize("memory", ["lean", "fast"])
@pytest.mark.parametrize("order", LAYOUTS)
def test_several_output_gradients_at_once(memory, order):
    """As torch.autograd.functional.jacobian(vectorize=True) has them, by a vmap that knows few operators."""
    module, x = made(memory=memory), in_order(video(), order).requires_grad_()
    y, wanted = module(x), [x, *module.parameters()]
    dys = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(y, wanted, dys, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for dy in dys]
    for value, *parts in zip(found, *single, strict=True):
        torch.testing.assert_close(value, torch.stack(parts))


@pytest.mark.parametrize("memory", ["lean", "fast"])
@pytest.mark.parametrize("order", LAYOUTS)
def test_the_output_can_be_changed_in_place(memory, order):
    module, x = made(memory=memory), in_order(video(), order)
    y = module(x)
    wanted = torch.autograd.grad((y + x).square().sum(), list(module.parameters()))
    y = module(x)
    y += x
    found = torch.autograd.grad(y.square().sum(), list(module.parameters()))
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


def test_a_video_stays_in_its_layout():
    if "cpu" not in available_backends():
        pytest.skip("the cpu extension is not built: the reference leaves layouts to PyTorch")
    module = made()
    assert module(video()).is_contiguous()
    assert module(video().contiguous(memory_format=torch.channels_last_3d)).stride(1) == 1


def test_lanes_are_independent_and_time_is_mixed_both_ways():
    module, x = made(), video()
    other = x.clone()
    other[:, :, 2, 1, 1] += 1
    is_changed = (module(other) != module(x)).any(1)  # (batch, length, *lanes)
    assert is_changed[:, :, 1, 1].all()
    is_changed[:, :, 1, 1] = False
    assert not is_changed.any()


def test_shapes_are_the_papers():
    module = BidirectionalMamba(24)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    direction = {
        "conv_weight": (48, 4),
        "conv_bias": (48,),
        "x_proj.weight": (35, 48),
        "dt_proj.weight": (48, 3),
        "dt_bias": (48,),
        "A_log": (48, 16),
        "D": (48,),
    }
    expected = {f"{own}.{name}": shape for own in ("causal", "anticausal") for name, shape in direction.items()}
    expected |= {"in_proj.weight": (96, 24), "in_proj.bias": (96,)}
    expected |= {"out_proj.weight": (24, 48), "out_proj.bias": (24,)}
    assert shapes == expected
    assert BidirectionalMamba(24, dt_rank=5).causal.dt_proj.weight.shape == (48, 5)
    assert {n for n, _ in BidirectionalMamba(24, bias=False).named_parameters()} == set(expected) - {
        "in_proj.bias",
        "out_proj.bias",
    }


def test_initial_values_are_mambas():
    torch.manual_seed(0)
    module = BidirectionalMamba(64, states=5)
    for own in (module.causal, module.anticausal):
        torch.testing.assert_close(own.A(), -torch.arange(1.0, 6).expand(128, 5))
        assert (own.D == 1).all()
        step = F.softplus(own.dt_bias)
        assert 1e-3 * 0.999 <= step.min() and step.max() <= 1e-1 * 1.001 and step.std() > 0
        assert own.dt_proj.weight.abs().max() <= 8**-0.5
        assert own.conv_weight.abs().max() <= 0.5
    assert not torch.equal(module.causal.x_proj.weight, module.anticausal.x_proj.weight)


def test_one_direction_owns_one_set_of_parameters_and_sees_the_past_only():
    module, x = made(directions=1), video()
    names = {name for name, _ in module.named_parameters()}
    assert names == {n for n, _ in made().named_parameters() if not n.startswith("anticausal")}
    changed = x.clone()
    changed[:, :, 2] += 1
    is_changed = (module(changed) != module(x)).any(dim=(0, 1, 3, 4))
    assert is_changed.tolist() == [False, False, True, True, True]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="MambaMixer: directions must be one of 1, 2, but is 3"):
        MambaMixer(6, directions=3)


def test_autocast_agrees_between_memory_modes_bit_for_bit():
    found = []
    for mode in ("fast", "lean"):
        module, x = made(memory=mode), video().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (x, *module.parameters()))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_autocast(memory):
    module, x = made(memory=memory), video()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    torch.testing.assert_close(y.float(), module(x), rtol=0.1, atol=0.02)


def test_half_precision_parameters():
    assert made(dtype=torch.bfloat16)(video(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_is_empty_where_its_input_is():
    module = made()
    for shape in ((0, 6, 4, 2), (2, 6, 0, 2), (2, 6, 4, 0)):
        x = torch.zeros(shape, requires_grad=True)
        y = module(x)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape


def test_meta_device():
    with torch.device("meta"):
        module = BidirectionalMamba(896)
        x = torch.empty(1, 896, 256, 32, 32, requires_grad=True)
        module(x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_compile_without_break_and_with_few_recompiles(memory):
    torch._dynamo.reset()
    module = made(memory=memory)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for batch in range(1, 11):
        x = video((batch, 6, 4, 3))
        y, expected = compiled(x), module(x)
        torch.testing.assert_close(y, expected)
        gradients = [torch.autograd.grad(out.square().sum(), tuple(module.parameters())) for out in (y, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 3


def test_export_and_state_dict_round_trip():
    module, x = made(), video((2, 6, 4, 3))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(program.module()(video((5, 6, 4, 3))), module(video((5, 6, 4, 3))))
    copy = made(seed=7)
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy(x), module(x))
