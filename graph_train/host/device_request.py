"""What `--device` says. Nothing heavy is imported here: ranks read it before OneFlow is loaded."""

from collections.abc import Sequence

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""Of the GPUs that this variable lists a process sees those alone, numbered from 0."""


def gpu_numbers(request: str) -> tuple[int, ...] | None:
    """The GPUs that a text names: "0", "cuda:1" or "2,3"; () for "", the first there is; None for "cpu".

    Raises:
        ValueError: it is none of these.
    """
    text = request.strip().lower()
    if text == "cpu":
        return None
    numbers = [part.strip() for part in text.removeprefix("cuda:").split(",")] if text else []
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"--device {request!r}: give cpu, or the number of a GPU such as 0")
    return tuple(int(number) for number in numbers)


def visible_devices(numbers: Sequence[int]) -> str:
    """Its value for these GPUs."""
    return ",".join(map(str, numbers))
