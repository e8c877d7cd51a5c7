"""Which device a run computes on."""

from kernels.runtime import flow


def select_device(request: str, local_rank: int | None = None) -> str:
    """The OneFlow device for `--device`: "" takes a GPU where there is one; "cpu"; or one CUDA index such as "0".

    Args:
        request: the flag.
        local_rank: of several processes, each with a GPU of its own; the GPUs that `--device 2,3` names are the
            only visible ones by then, see `graph_train.team.join`.
    Raises:
        ValueError: a GPU that is not there, or several GPUs without the launcher.
    """
    text = request.strip().lower().removeprefix("cuda:")
    count = flow.cuda.device_count() if flow.cuda.is_available() else 0
    if text == "cpu":
        return "cpu"
    if local_rank is not None:
        if not count and text == "":
            return "cpu"
        if local_rank >= count:
            raise ValueError(
                f"--device {request or repr(request)}: local rank {local_rank} needs a GPU of its own, this host has "
                f"{count}; start fewer processes here, or use --device cpu"
            )
        return f"cuda:{local_rank}"
    if text == "":
        return "cuda:0" if count else "cpu"
    if "," in text:
        raise ValueError(
            f"--device {request}: several GPUs need one process each; start with "
            "`python -m oneflow.distributed.launch --nproc_per_node N -m graph_train …`"
        )
    if not text.isdigit():
        raise ValueError(f"--device {request!r}: give cpu, or the number of a GPU such as 0")
    if int(text) >= count:
        raise ValueError(f"--device {request}: this machine has {count} usable GPUs; use --device cpu")
    return f"cuda:{text}"
