import socket
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.harness.results import read_result
from benchmarks.step.scaling import sent_bytes


def test_counts_interface_bytes() -> None:
    content = b"\0" * 100_000
    before = sent_bytes("lo")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        there, _ = server.accept()
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        with there, there.makefile("rb") as received:
            assert received.read() == content
    assert sent_bytes("lo") - before >= len(content)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--interface", "no0"], "--interface no0: must be one of "),
        (["--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--ranks", "1", "9", "--points", "yolov5n:8:64"], "--ranks 9: must be at least 1 and at most the batch size"),
    ],
)
def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], reason: str) -> None:
    assert main(["scaling", *flags]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.distributed
def test_two_ranks_transfer_gradients_once(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    flags = ["--points", "yolov5n:4:64", "--repeats", "3", "--json", str(file), "--plot", str(tmp_path / "s.png")]
    assert main(["scaling", *flags]) == 0
    one, two = read_result(file)["rows"]
    assert (one["ranks"], two["ranks"], one["ring_mb"]) == (1, 2, 0)
    assert all(two[name]["lowest"] > 0 for name in ("apart_ms", "sum_ms", "agreement_ms"))
    assert two["ring_mb"] == pytest.approx(2 * two["gradient_mb"])
    # The minimum traffic of two ranks, within rounding, plus losses and statistics of a small batch;
    # other programs may use the interface, too.
    assert 0.98 * two["ring_mb"] < two["mb_sent_per_step"] < 1.3 * two["ring_mb"]
