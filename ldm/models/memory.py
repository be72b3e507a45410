"""How many pictures a device's memory holds at once."""

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from ldm.models.latent_diffusion import LatentDiffusion

SHARE = 0.7
"""Of the free memory that may be planned for; the rest is for the allocator's fragments and the kernels' workspaces."""

MOST_PICTURES = 32
"""More at once are hardly faster on any device, and are saved later."""


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.count(value.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count `storage` from now on until it is freed."""
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self.storages.pop(key, 0)


def pictures_at_once(model: "LatentDiffusion", height: int, width: int) -> int:
    """How many guided pictures of `height` x `width` px can be drawn together, 1 to MOST_PICTURES.

    The need is counted on tensors without data. It is that of the UNet: the VAE decodes a few pictures at a time
    (`codec.PIXELS_AT_ONCE`).
    """
    one, two = (_bytes_of_a_pass(model, height, width, pictures) for pictures in (1, 2))
    each = max(two - one, 1)
    room = SHARE * free_bytes(model.device) - max(one - each, 0)
    return int(min(max(room // each, 1), MOST_PICTURES))


def _bytes_of_a_pass(model: "LatentDiffusion", height: int, width: int, pictures: int) -> int:
    """Peak bytes, beside the weights, of a guided pass over `pictures`, two rows each."""
    rows = 2 * pictures
    conditioning = model.embed([""] * rows)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), Alive() as alive:
        weights = [fake.from_tensor(parameter) for parameter in model.unet.parameters()]
        for weight in weights:
            alive.count(weight.untyped_storage())
        before = alive.now
        x = torch.empty(rows, *model.latent_shape(height, width), device=model.device)
        timesteps = torch.zeros(rows, dtype=torch.long, device=model.device)
        model.predict(x, timesteps, conditioning)
    return alive.most - before


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with what torch's allocator holds unused, or of the machine or its container."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    return min([_free_on_the_machine(), *_free_in_the_container()])


def _free_on_the_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of all memory
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _free_in_the_container() -> list[int]:
    """What the container's limit (cgroup, version 2) leaves; empty without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        return [int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())]
    except (OSError, ValueError):  # ValueError: "max"
        return []
