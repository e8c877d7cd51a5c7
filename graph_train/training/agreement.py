"""Agreement of all ranks on events that only some of them see: stop requests, saves, label capacity."""

from graph_train.hooks.callbacks import Callbacks
from graph_train.host.interrupts import StopRequest
from graph_train.ranks.exchange import Exchange


class Agreement:
    """Synchronisation of stop requests over the ranks; with one rank, nothing is exchanged.

    Args:
        exchange: the collectives.
        request: stop signals received by this process.
        callbacks: this process's callbacks, which may also request a stop.
    """

    def __init__(self, exchange: Exchange, request: StopRequest, callbacks: Callbacks) -> None:
        self._exchange, self._request, self._callbacks = exchange, request, callbacks
        self._signal = ""

    @property
    def signal(self) -> str:
        """Name of the signal that stops the run, once all ranks know of it; "" if there is none."""
        return self._request.signal_name if self._exchange.single_rank else self._signal

    def sync(self, *numbers: int) -> tuple[int, ...]:
        """Return the maximum of each number over the ranks, and exchange stop requests.

        All ranks must call it at the same points, and so they stop at the same point.
        """
        if self._exchange.single_rank:
            return numbers
        local = (*numbers, bool(self._request.signal_name), self._callbacks.stop_training)
        *largest, signalled, stop = self._exchange.all_reduce_max(*local)
        if signalled:
            self._signal = self._request.signal_name or "a signal to another rank"
        self._callbacks.stop_training = bool(stop)
        return tuple(largest)


def require_same_digest(digest: str, exchange: Exchange) -> str:
    """Return the digest `own`, which must be the same on all ranks.

    Raises:
        RuntimeError: the digests differ.
    """
    differing = [rank for rank, other in enumerate(exchange.all_gather_texts(digest)) if other != digest]
    if differing:
        raise RuntimeError(f"the weights of rank {exchange.rank} differ from those of ranks {differing}")
    return digest
