"""Autograd formulas that are differentiable once: asked for a derivative of their derivative, they say so."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def differentiable_once(backward: Callable) -> Callable:
    """Decorates `backward` of a torch.autograd.Function whose operations autograd is not to follow.

    Under create_graph its results depend on all that they were computed from, through a node that refuses. torch's own
    once_differentiable hangs its refusal on tensors of its own, where only .backward() looks: torch.autograd.grad with
    inputs, and with it torch.autograd.functional, would leave the term out in silence.
    """

    @functools.wraps(backward)
    def once(ctx, *gradients):
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        results = results if isinstance(results, tuple) else (results,)
        sources = [t for t in (*gradients, *ctx.saved_tensors) if t is not None and t.requires_grad]
        attached = iter(_Refusing.apply(*(t for t in results if t is not None), *sources))
        return tuple(None if t is None else next(attached) for t in results)

    return once


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors):
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError(
            "ssmvdm: this layer's formula has a first derivative only, and this asks for a derivative of it. "
            "memory='fast' leaves derivatives to autograd; scans can be differentiated twice with backend='reference'."
        )
