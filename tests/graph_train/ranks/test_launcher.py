import pytest

from graph_train.ranks.launcher import RankInfo, first_host, rank_info

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "70123",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_no_launcher_is_single_process() -> None:
    assert rank_info({}, host="a") == RankInfo(host="a")
    # OneFlow sets these in a single process, and child processes inherit them.
    own = {"RANK": "-1", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "0"}
    assert rank_info(own, host="a").single_rank


def test_launcher_variables() -> None:
    assert rank_info(TORCH, host="b") == RankInfo(3, 4, 1, "b", "10.0.0.1", 29500)
    # torchrun's agent listens at the port itself.
    assert rank_info({**TORCH, "TORCHELASTIC_USE_AGENT_STORE": "True"}, host="b").master_port == 29501
    assert rank_info({**TORCH, "RANK": "0", "WORLD_SIZE": "1"}, host="b").single_rank


def test_slurm_variables() -> None:
    assert rank_info(SLURM, host="gpu004") == RankInfo(5, 8, 1, "gpu004", "gpu003", 20000 + 70123 % 20000)
    chosen = rank_info({**SLURM, "MASTER_PORT": "23456", "MASTER_ADDR": "10.1.1.1"}, host="gpu004")
    assert (chosen.master_host, chosen.master_port) == ("10.1.1.1", 23456)
    # A batch script has SLURM_NTASKS and a process number, but only srun starts the tasks.
    assert rank_info({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, host="a").single_rank


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_PORT": None}, "not MASTER_PORT; a launcher sets all four"),
        ({"RANK": "4"}, "RANK=4, WORLD_SIZE=4: ranks count from 0"),
        ({"RANK": "x"}, "RANK='x': must be an integer"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: must be between 1 and 65535"),
        # Rank 0 would listen at 65536.
        ({"MASTER_PORT": "65535", "TORCHELASTIC_USE_AGENT_STORE": "True"}, "must be between 1 and 65534"),
        ({"WORLD_SIZE": str(10**9)}, f"WORLD_SIZE={10**9}: at most 65536 ranks"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: must be between 0 and WORLD_SIZE - 1"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4: must be between 0 and WORLD_SIZE - 1"),
    ],
)
def test_invalid_variables_raise(change: dict[str, str | None], message: str) -> None:
    variables = {name: value for name, value in {**TORCH, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        rank_info(variables, host="a")


def test_slurm_without_srun_raises() -> None:
    with pytest.raises(ValueError, match="not SLURM_LOCALID, SLURM_STEP_NODELIST: start with `srun`"):
        rank_info({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, host="a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_PROCID": "8"}, "SLURM_PROCID=8, SLURM_STEP_NUM_TASKS=8: ranks count from 0"),
        ({"SLURM_LOCALID": "-1"}, "SLURM_LOCALID=-1: must be between 0 and SLURM_STEP_NUM_TASKS - 1"),
        ({"SLURM_STEP_NUM_TASKS": str(10**30)}, "at most 65536 ranks"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0: must be between 1 and 65535"),
    ],
)
def test_slurm_variables_out_of_range_raise(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_info({**SLURM, **change}, host="a")


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID"])
def test_non_numeric_slurm_variables_raise(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='abc': must be an integer"):
        rank_info({**SLURM, name: "abc"}, host="a")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-010,12],login1", "gpu003"), ("node-7", "node-7"), ("a.b.c,d", "a.b.c"), ("r1n[2,4]-ib", "r1n2-ib")],
)
def test_first_host_of_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_missing_node_list_raises() -> None:
    with pytest.raises(ValueError, match="not a node list"):
        first_host("[1-3]")
