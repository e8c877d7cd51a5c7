"""What all ranks must do at the same moment although only some of them know of it: stop, save, pad labels alike."""

from graph_train.hooks.callbacks import Callbacks
from graph_train.host.interrupts import StopRequest
from graph_train.ranks.exchange import Exchange


class Agreement:
    """Tells this rank what any rank was asked for. Alone, it is what this process was asked for.

    Args:
        exchange: with the other ranks.
        request: signals to this process.
        callbacks: of this process; they may ask for a stop too.
    """

    def __init__(self, exchange: Exchange, request: StopRequest, callbacks: Callbacks) -> None:
        self._exchange, self._request, self._callbacks = exchange, request, callbacks
        self._asked = ""

    @property
    def asked(self) -> str:
        """The signal that ended the run, once all ranks know of it."""
        return self._request.asked if self._exchange.alone else self._asked

    def meet(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of each number over the ranks, and tell all of them who was asked to stop.

        All ranks call it at the same places, so all leave at the same one.
        """
        if self._exchange.alone:
            return numbers
        own = (*numbers, bool(self._request.asked), self._callbacks.stop_training)
        *agreed, asked, stop = self._exchange.all_reduce_max(*own)
        if asked:
            self._asked = self._request.asked or "a signal to another rank"
        self._callbacks.stop_training = bool(stop)
        return tuple(agreed)


def agreed_digest(own: str, exchange: Exchange) -> str:
    """Return a digest of what must be the same on all ranks.

    Raises:
        RuntimeError: it is not.
    """
    differing = [rank for rank, other in enumerate(exchange.all_gather_texts(own)) if other != own]
    if differing:
        raise RuntimeError(f"rank {exchange.rank} does not hold the weights of ranks {differing}")
    return own
