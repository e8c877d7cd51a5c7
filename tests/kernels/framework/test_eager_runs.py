from kernels.framework.eager_runs import EAGER_RUNS, EagerRuns


def test_each_shape_has_its_own_runs() -> None:
    runs = EagerRuns()
    assert [runs.should_run_eagerly("a") for _ in range(EAGER_RUNS + 2)] == [True] * EAGER_RUNS + [False] * 2
    assert runs.should_run_eagerly("b")
