"""The sample numbers of each process: the counter that keys all of training."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class CountingBatchSampler(Sampler[list[int]]):
    """Endless batches of sample numbers 0, 1, 2, ..., split evenly over the processes.

    Micro-batch m of process r has the `batch_size` numbers from (m * world_size + r) * batch_size on, so the samples
    of an optimizer step do not depend on how processes and accumulation divide them.
    No `__len__`: Lightning would end the epoch early on a resume (restored progress is added to it).
    """

    def __init__(self, batch_size: int, first_micro_batch: int = 0, rank: int = 0, world_size: int = 1):
        self.batch_size = batch_size
        self.first_micro_batch = first_micro_batch
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        micro_batch = self.first_micro_batch
        while True:
            first = (micro_batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            micro_batch += 1
