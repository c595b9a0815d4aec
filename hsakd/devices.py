"""The device: whether there is one, how a step's values come to it without waiting for it, and in which precision it computes."""

import contextlib

import torch
from torch import Tensor

from hsakd.config import NumericsConfig


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` of the host on `device`; the host goes on at once, since a GPU is sent them from pinned memory."""
    pinned = values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values  # what is pinned stays as it is
    return pinned.to(device, non_blocking=True)


def parameter_dtype(numerics: NumericsConfig) -> torch.dtype:
    """Return the type of parameters and images: float32, also under mixed precision, or float64."""
    return torch.float64 if numerics.precision == "float64" else torch.float32


def autocasting(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Return a context of mixed precision with `dtype`; for None one that changes nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def usable_device(name: str) -> torch.device:
    """Return the device of this name; raises ValueError where PyTorch can't compute on it."""
    try:
        return torch.zeros(1, device=name).device  # with memory and a kernel
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a PyTorch without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device is {name}; accepted: cpu, or a GPU of this machine such as cuda:0 ({reason})") from error
