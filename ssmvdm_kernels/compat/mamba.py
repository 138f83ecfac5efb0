"""The functions of mamba-ssm (Mamba-1) with its signatures, on the scan of this package.

    from .mamba import selective_scan_fn

takes the place of `from mamba_ssm.ops.selective_scan_interface import selective_scan_fn`, on every device and layout
that `ssmvdm_kernels.selective_scan` runs on. For callers that cannot be changed, `install()` puts the functions under
the name `mamba_ssm`.

Differences: A is real. Nothing has to be contiguous. The gradients of last_state and of norm weights are computed.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch import Tensor

from ..scan import selective_scan
from ..validation import check_choice
from . import vim
from .arguments import LayerTensors
from .inner import inner, without_autocast


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ssmvdm_kernels.selective_scan` as mamba-ssm calls it, which see for shapes, dtypes and errors.

    u, delta and z are (batch, channels, length). Autocast is not applied: tensors keep the dtypes they come in.
    """
    with without_autocast(u):
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` by the reference backend: a plain loop in PyTorch, differentiable any number of times."""
    with without_autocast(u):
        return selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference"
        )


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """All of a Mamba layer after its first projection: W_out (scan(silu(conv(x)), delta, A, B, C, D) * silu(z)).

    Args:
        xz: (batch, 2 channels, length), x and z one after the other.
        conv1d_weight: (channels, 1, width) or (channels, width); conv1d_bias: (channels,) or None.
        x_proj_weight: (rank + 2 states, channels), without the rows of a B or C that is given.
        delta_proj_weight: (channels, rank). out_proj_weight: (out, channels); out_proj_bias: (out,) or None.
        A: (channels, states). B, C: (channels, states), constant in time, or None: then projections of the input, to
            which B_proj_bias and C_proj_bias (states,) are added.
        D, delta_bias: (channels,). delta_softplus: as in selective_scan.
        checkpoint_lvl: 1 keeps xz for the backward pass and computes the rest again there; 0 keeps everything.
        b_rms_weight, c_rms_weight, dt_rms_weight: weights of RMS norms with b_c_dt_rms_eps on B, C (states,) and on
            delta before its bias (channels,).

    Returns:
        (batch, length, out).

    dtypes are as in `ssmvdm_kernels.causal_conv1d` and `selective_scan` with xz as their sequence, whose dtype the
    projections' weights have; biases before a norm and after the scan, and the norms' weights, have any. Under autocast
    xz is float32 or of its dtype, and all others have any.

    Raises, before anything is computed:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a wrong shape or device, an unknown checkpoint_lvl.
    """
    caller = "mamba_inner_fn"
    check_choice(caller, "checkpoint_lvl", checkpoint_lvl, (0, 1))
    tensors = LayerTensors(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, b_rms_weight, c_rms_weight, dt_rms_weight, out_proj_weight=out_proj_weight,
        out_proj_bias=out_proj_bias,
    )  # fmt: skip
    is_recomputed = checkpoint_lvl == 1
    return inner(caller, tensors, delta_softplus, "out_proj_weight", is_recomputed=is_recomputed, eps=b_c_dt_rms_eps)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` without norms, from the same convolution and scan, differentiated by autograd step by step."""
    tensors = LayerTensors(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, out_proj_weight=out_proj_weight, out_proj_bias=out_proj_bias,
    )  # fmt: skip
    return inner("mamba_inner_ref", tensors, delta_softplus, "out_proj_weight", is_recomputed=False)


# What `install` provides: modules by name, with what is in them. The version is Mamba-1's, so that callers who look for
# the kernels of Mamba-2, which are not here, do not expect them.
_VERSION = "1.2.2+ssmvdm"
_FUNCTIONS = {"selective_scan_fn": selective_scan_fn, "mamba_inner_fn": mamba_inner_fn}
_MODULES: dict[str, dict[str, object]] = {
    "mamba_ssm": {"__version__": _VERSION, **_FUNCTIONS, "Mamba": vim.Mamba},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {
        **_FUNCTIONS,
        "selective_scan_ref": selective_scan_ref,
        "mamba_inner_ref": mamba_inner_ref,
        "bimamba_inner_fn": vim.bimamba_inner_fn,
        "mamba_inner_fn_no_out_proj": vim.mamba_inner_fn_no_out_proj,
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": vim.Mamba},
}


def install() -> None:
    """Make `import mamba_ssm` in this process find the functions above, and `Mamba` of `compat.vim`.

    Has to be called before the module that wants them is imported: transformers, for one, looks when its Mamba model is
    imported. Calling it again does nothing. A mamba_ssm that is installed but not yet imported is hidden.

    Raises RuntimeError if another mamba_ssm is imported already.
    """
    present = sys.modules.get("mamba_ssm")
    if present is not None:
        if getattr(present, "__version__", None) == _VERSION:
            return
        where = getattr(present, "__file__", None) or "an unknown place"
        raise RuntimeError(
            f"install: mamba_ssm has been imported already, from {where}. Call install() before anything imports it."
        )
    for name, contents in _MODULES.items():
        module = ModuleType(name, "Provided by ssmvdm_kernels.compat.mamba.install().")
        is_package = any(other.startswith(f"{name}.") for other in _MODULES)
        module.__spec__ = ModuleSpec(name, None, is_package=is_package)
        if is_package:
            module.__path__ = []
        vars(module).update(contents)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
