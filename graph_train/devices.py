"""Which device a run computes on."""

from kernels.runtime import flow


def select_device(request: str) -> str:
    """The OneFlow device for `--device`: "" takes a GPU where there is one; "cpu"; or one CUDA index such as "0".

    Raises:
        ValueError: a GPU that is not there, or several GPUs without the launcher.
    """
    text = request.strip().lower().removeprefix("cuda:")
    count = flow.cuda.device_count() if flow.cuda.is_available() else 0
    if text == "cpu":
        return "cpu"
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
