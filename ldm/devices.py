"""Devices and precisions."""

import platform
from collections.abc import Mapping
from typing import get_args

import torch

from ldm.errors import UserError
from ldm.values import Precision

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name.replace("fp", "float").replace("bf", "bfloat")) for name in get_args(Precision)
}
"""Precisions by their names in configs."""


def choose_device(name: str | None) -> torch.device:
    """The device `name`; None chooses the GPU if there is one. Raises UserError if it is not available."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not available here; leave it out, or use cpu") from error
    return device


def choose_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """Precision of weights and activations for the scripts' option `--precision`."""
    if precision and precision in DTYPES:
        return DTYPES[precision]
    if precision in (None, "autocast") and device.type == "cuda":
        return torch.float16
    return torch.float32


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` of the host on `device`. The host does not wait for a GPU, which may still be at earlier work."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def set_tf32(allowed: bool) -> None:
    """Set whether a GPU's fp32 matrix products and convolutions may round their inputs to TF32's 10 bits.

    torch allows it for convolutions by default, which would make fp32 inexact in the VAE and the UNet.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def computing_device(device: torch.device) -> str:
    """torch's version, the device, and a CPU's threads: the last digits of results depend on them."""
    if device.type == "cuda":
        tf32, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        products = ("TF32" if tf32 else "fp32") + ("" if convolutions == tf32 else " (convolutions not)")
        kernels = "deterministic" if torch.are_deterministic_algorithms_enabled() else "any"
        kernels += ", the fastest found" if torch.backends.cudnn.benchmark else ""
        name = torch.cuda.get_device_name(device)
        return f"torch {torch.__version__}, {name}, {products} products, {kernels} kernels"
    return f"torch {torch.__version__}, CPU of {platform.node()}, {torch.get_num_threads()} threads"
