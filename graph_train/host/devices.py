"""Selection of the compute device. OneFlow is imported only to count GPUs, because ranks need `--device` before it."""

import logging
import os
from collections.abc import Sequence
from functools import cache

from kernels.host.cuda_devices import driver_problem, has_driver_module
from kernels.host.process_settings import requested_threads

LOG = logging.getLogger("graph_train")
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""A process sees only the GPUs listed in this variable, numbered from 0."""


def gpu_numbers(request: str) -> tuple[int, ...] | None:
    """Parse `--device`: GPU numbers for "0", "cuda:1" or "2,3"; () for "" (the first GPU, if any); None for "cpu".

    Raises:
        ValueError: `request` is none of these.
    """
    text = str(request).strip().lower()  # `team.join` passes the argument of `train` as given
    if text == "cpu":
        return None
    numbers = [part.strip() for part in text.removeprefix("cuda:").split(",")] if text else []
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"--device {request!r}: must be cpu or the number of a GPU, such as 0")
    return tuple(int(number) for number in numbers)


def visible_devices(numbers: Sequence[int]) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES for these GPUs."""
    return ",".join(map(str, numbers))


def cpu_threads() -> int:
    """Return the number of threads of CPU kernels: OMP_NUM_THREADS, or the number of available cores.

    Sums are split over the threads, so results depend on their number: at first in the last digits.
    """
    return requested_threads() or len(os.sched_getaffinity(0))


def select_device(request: str, local_rank: int | None = None) -> str:
    """Return the OneFlow device for `--device`: "" (a GPU if there is one), "cpu", or a GPU number such as "0".

    Args:
        request: the value of the flag.
        local_rank: with several processes, the number of this one on its host; each has its own GPU. The GPUs of
            `--device 2,3` are the only visible ones by then, see `graph_train.ranks.team.join`.
    Raises:
        ValueError: there is no such GPU, or several GPUs are given without a launcher.
    """
    numbers = gpu_numbers(request)
    if numbers is None:
        return "cpu"
    from kernels.runtime import flow

    count = flow.cuda.device_count() if flow.cuda.is_available() else 0
    if local_rank is not None:
        return _device_of_rank(request, numbers, local_rank, count)
    if not numbers and not count:
        _warn_of_unusable_gpus()
        return "cpu"
    if not numbers:
        return "cuda:0"
    if len(numbers) > 1:
        raise ValueError(
            f"--device {request}: several GPUs need one process each; start with "
            "`python -m oneflow.distributed.launch --nproc_per_node N -m graph_train …`"
        )
    if numbers[0] >= count:
        reason = _reason(count)
        raise ValueError(f"--device {request}: this machine has {count} usable GPUs{reason}; use --device cpu")
    return f"cuda:{numbers[0]}"


def _reason(count: int) -> str:
    """Return why there are no usable GPUs, in parentheses; "" if there are some, or the reason is not known."""
    problem = "" if count else driver_problem()
    return f" ({problem})" if problem else ""


@cache
def _warn_of_unusable_gpus() -> None:
    """Warn, once, if the host has an NVIDIA GPU and its driver's kernel module, but the driver cannot be used."""
    if has_driver_module() and os.environ.get(VISIBLE_DEVICES) not in ("", "-1") and (problem := driver_problem()):
        LOG.warning("using the CPU, although this machine has an NVIDIA GPU: %s", problem)


def _device_of_rank(request: str, numbers: Sequence[int], local_rank: int, count: int) -> str:
    if not count and not numbers:
        _warn_of_unusable_gpus()
        return "cpu"
    if local_rank >= count:
        raise ValueError(
            f"--device {request or repr(request)}: local rank {local_rank} needs its own GPU, but this host has "
            f"{count}{_reason(count)}; start fewer processes on it, or use --device cpu"
        )
    visible = visible_devices(numbers)
    if numbers and os.environ.get(VISIBLE_DEVICES) != visible:
        raise ValueError(
            f"--device {request}: given after the ranks have joined; set {VISIBLE_DEVICES}={visible}, or call "
            "graph_train.ranks.team.join(devices=…)"
        )
    return f"cuda:{local_rank}"
