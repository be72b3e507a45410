"""Which sample numbers a process sees: the counter that all of training is keyed to."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class CountingBatchSampler(Sampler[list[int]]):
    """Endless batches of sample numbers 0, 1, 2, ..., split evenly over the processes.

    Micro-batch m of process r holds the `batch_size` numbers from (m * world_size + r) * batch_size on, so
    the samples behind an optimizer step are the same however processes and accumulation share them out.
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
