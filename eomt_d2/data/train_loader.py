"""The training loader: batches that depend only on the seed and on their number."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from eomt_d2.data.image_order import ImageOrder
from eomt_d2.data.seeding import Stream, seed_globals

__all__ = ["SeededDataset", "TrainLoader", "shield_worker"]

# How long a worker that was asked to end goes on, in seconds, so that its training can finish the
# iteration and save; torchrun waits as long.
GRACE_PERIOD = 30


class TrainLoader:
    """Endless batches; number i is the same whoever asks for it, and whenever.

    The images of a batch, and every random number of their augmentation, depend on the seed and
    on the position of each sample in the stream of all samples, not on the number of workers or on
    earlier batches. So a training that was interrupted continues with :meth:`seek` as if it had
    not been. Iterating starts at the beginning, or where :meth:`seek` said.

    With ``group_by_aspect_ratio``, images wait for others of their shape; the samples are the
    same, but which of them meet in a batch depends on those before, so after :meth:`seek` batches
    are only nearly what they would have been.

    Args:
        dataset: images in Detectron2's dataset format, by index.
        mapper: turns one into a sample; it may draw from any global generator.
        order: of the images.
        seed: at least 0.
        batch_size: of all processes together; a multiple of their number.
        num_workers: processes that load; 0: this one.
        group_by_aspect_ratio: as Detectron2's ``DATALOADER.ASPECT_RATIO_GROUPING``.
    """

    def __init__(
        self,
        dataset: Any,
        mapper: Callable[[dict], dict],
        order: ImageOrder,
        *,
        seed: int,
        batch_size: int,
        num_workers: int = 0,
        group_by_aspect_ratio: bool = False,
    ):
        self._dataset = dataset
        self._mapper = mapper
        self._order = order
        self._seed = seed
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._group = group_by_aspect_ratio
        self._first_batch = 0

    @property
    def is_exact(self) -> bool:
        """Whether batches after :meth:`seek` are exactly those of an uninterrupted training."""
        return not self._group

    def seek(self, seed: int, batch: int) -> None:
        """Let the next iterator start at a batch, counted from 0, of the training with a seed."""
        self._seed, self._first_batch = seed, batch

    def __iter__(self) -> Iterator[list[dict]]:
        dataset = SeededDataset(self._dataset, self._mapper, self._seed)
        batches = self._places()
        if not self._group:
            # The batches come in order however many workers there are.
            return iter(
                DataLoader(
                    dataset,
                    batch_sampler=batches,
                    collate_fn=trivial_batch_collator,
                    num_workers=self._num_workers,
                    worker_init_fn=shield_worker,
                )
            )
        # Detectron2's class takes single samples from the workers.
        samples = DataLoader(
            dataset,
            sampler=(place for batch in batches for place in batch),
            batch_size=None,
            num_workers=self._num_workers,
            worker_init_fn=shield_worker,
        )
        return iter(AspectRatioGroupedDataset(samples, self._batch_size // comm.get_world_size()))

    def _places(self) -> Iterator[list[tuple[int, int]]]:
        """(position, index) of the samples of each batch that this process loads."""
        share = self._batch_size // comm.get_world_size()
        first = comm.get_rank() * share
        position = self._first_batch * self._batch_size
        indices = self._order.indices(self._seed, position)
        while True:
            batch = [(position + i, next(indices)) for i in range(self._batch_size)]
            yield batch[first : first + share]
            position += self._batch_size


class SeededDataset(Dataset):
    """Samples whose random numbers depend on the seed and their position.

    Args:
        dataset: images in Detectron2's dataset format, by index.
        mapper: see :class:`TrainLoader`.
        seed: at least 0.
    """

    def __init__(self, dataset: Any, mapper: Callable[[dict], dict], seed: int):
        self._dataset = dataset
        self._mapper = mapper
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: tuple[int, int]) -> dict:
        position, index = place
        seed_globals(Stream.SAMPLE, self._seed, position)
        return self._mapper(self._dataset[index])


def shield_worker(worker_id: int) -> None:
    """Keep a loading process alive when the whole group of processes is told to end.

    A terminal sends SIGINT, and SLURM its signals, to every process. Workers that ended at once
    would take the iteration with them, after which the training wants to save; it ends them itself.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_PERIOD))
