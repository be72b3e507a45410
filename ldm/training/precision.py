"""Makes a run train in the precision its config names."""

from collections.abc import Mapping

from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.plugins.precision import MixedPrecision, Precision

FP16 = "16-mixed"


def precision_options(settings: Mapping[str, object]) -> tuple[object, list[Precision]]:
    """The Trainer's `precision` and plugins for a config's `lightning.trainer`.

    For fp16 on a CPU, Lightning would use bf16 without a gradient scaler and warn; the plugin trains in fp16.
    """
    precision = settings.get("precision")
    if precision == FP16 and _is_cpu(settings.get("accelerator", "auto")):
        return None, [MixedPrecision("16-mixed", "cpu")]
    return precision, []


def trained_in(named: object, checkpoint: Mapping[str, object]) -> object:
    """The precision in which `checkpoint`, whose config names `named`, was trained.

    Older runs in fp16 without a GPU were trained in bf16: they have no gradient scaler.
    """
    if named == FP16 and MixedPrecision.__qualname__ not in checkpoint:
        return "bf16-mixed"
    return named


def _is_cpu(accelerator: object) -> bool:
    if accelerator == "auto":
        return not (CUDAAccelerator.is_available() or MPSAccelerator.is_available())
    return accelerator == "cpu"
