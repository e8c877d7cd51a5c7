"""Sharding of batches over the ranks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """This rank's part of every batch."""

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"shard: rank {self.rank} of {self.ranks}: must be between 0 and ranks - 1")

    def rows(self, count: int) -> slice:
        """Return this rank's rows of a batch, as OneFlow's `split(0)` does: the first ranks may have one more row.

        If there are fewer rows than ranks, every rank gets all rows, because all ranks must take part.
        """
        if count < self.ranks:
            return slice(0, count)
        share, more = divmod(count, self.ranks)
        first = self.rank * share + min(self.rank, more)
        return slice(first, first + share + (self.rank < more))

    def owns_rows(self, count: int) -> bool:
        """Return whether this rank's rows of a batch of `count` rows are its own, not copies of another rank's."""
        return count >= self.ranks or self.rank == 0

    def max_rows(self, count: int) -> int:
        """Return the largest number of rows of a rank for a batch of up to `count` rows."""
        return max(-(-count // self.ranks), min(count, self.ranks - 1))
