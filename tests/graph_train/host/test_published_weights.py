"""Published weights from a local server: URL shown, download only if allowed, resumed and verified."""

import hashlib
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_train.cli.export import main as export_main
from graph_train.cli.predict import main as predict_main
from graph_train.cli.val import main as val_main
from graph_train.host import published_weights
from graph_train.host.published_weights import PublishedFile, located_weights, published_files
from models.network import DetectionModel
from models.spec import load_model_spec
from models.weights import load_weights
from pipelines.data import fetching
from tests.file_limit import file_limit
from tests.graph_train.tiny import TINY
from tests.models.torch_files import write_network
from tests.python_process import run_python
from tests.served import running

NAME = "yolov5n.pt"


class _Server(http.server.ThreadingHTTPServer):
    """A server of one file that closes the connection after `breaks_after` bytes and may support range requests."""

    content = b""
    breaks_after: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requested_ranges: list[str | None] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.requested_ranges.append(requested)
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and self.server.ranges else 0
        rest = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest if self.server.breaks_after is None else rest[: self.server.breaks_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """Serve a small network under the name of a published one; cache and working directory are empty."""
    weights = write_network(tmp_path / "source.pt", DetectionModel(load_model_spec(TINY), seed=0))
    server = _Server()
    server.content = weights.read_bytes()
    digest = hashlib.sha256(server.content).hexdigest()
    url = f"http://127.0.0.1:{server.server_address[1]}/{NAME}"
    table = {NAME: PublishedFile("YOLOv5 v7.0", "AGPL-3.0", url, len(server.content), digest)}
    monkeypatch.setattr(published_weights, "published_files", lambda: table)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with running(server):
        yield server


def cached_files() -> list[str]:
    folder = published_weights.user_cache_folder() / "weights/yolov5-v7.0"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def test_published_weights_table_is_complete() -> None:
    assert len(published_files()) == 10
    for name, entry in published_files().items():
        assert entry.url == f"https://github.com/ultralytics/yolov5/releases/download/v7.0/{name}"
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.licence == "AGPL-3.0"


@pytest.mark.parametrize("command", ["train", "val", "predict", "export"])
def test_every_command_prints_url_immediately(command: str, tmp_path: Path) -> None:
    """A new process answers within two seconds, without heavy imports."""
    more = ["--source", "x"] if command == "predict" else []
    code = f"""
import sys
from graph_train.cli.{command} import main
code = main(["--weights", "yolov5s.pt", *{more}])
assert not {{"oneflow", "nvidia.dali", "numpy"}} & set(sys.modules), "something heavy was loaded"
sys.exit(code)
"""
    started = time.monotonic()
    ran = run_python("-c", code, cwd=tmp_path, env={"HOME": str(tmp_path), "PATH": ""})
    assert ran.returncode == 2, ran.stderr
    assert time.monotonic() - started < 20  # a fraction of a second on an idle machine
    assert ran.stderr == (
        f"graph-{command}: yolov5s.pt: no such file; use --allow-download to download the weights of YOLOv5 v7.0 "
        "(14.8 MB, licence AGPL-3.0 or Ultralytics Enterprise) from "
        "https://github.com/ultralytics/yolov5/releases/download/v7.0/yolov5s.pt\n"
    )


def test_weights_are_downloaded_once_and_then_cached(server: _Server) -> None:
    found = located_weights(NAME, allow_download=True)
    assert found.read_bytes() == server.content
    assert located_weights(NAME, allow_download=False) == found
    assert located_weights(NAME, allow_download=True) == found
    assert len(server.requested_ranges) == 1
    assert cached_files() == [NAME]
    found.write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match="use --allow-download to download"):
        located_weights(NAME, allow_download=False)
    assert located_weights(NAME, allow_download=True).read_bytes() == server.content


def test_local_file_is_used_and_other_names_are_not_downloaded(server: _Server, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "source.pt", NAME)
    assert located_weights(NAME, allow_download=True) == Path(NAME)
    for name in ("mine.pt", f"folder/{NAME}"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such weight file"):
            located_weights(name, allow_download=True)
    assert server.requested_ranges == []


def test_broken_download_resumes(server: _Server) -> None:
    server.breaks_after = len(server.content) // 3 + 1
    assert located_weights(NAME, allow_download=True).read_bytes() == server.content
    assert server.requested_ranges == [None, f"bytes={server.breaks_after}-", f"bytes={2 * server.breaks_after}-"]


def test_partial_download_is_kept(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    server.breaks_after = 1000
    with pytest.raises(ValueError, match=rf"ended after 1000 of {len(server.content)} bytes \(1000 of .* run again"):
        located_weights(NAME, allow_download=True)
    assert cached_files() == [f"{NAME}.part"]
    server.breaks_after = None
    assert located_weights(NAME, allow_download=True).read_bytes() == server.content
    assert server.requested_ranges[-1] == "bytes=1000-"
    assert cached_files() == [NAME]


def test_server_without_ranges_restarts_download(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    server.ranges, server.breaks_after = False, 1000
    with pytest.raises(ValueError, match="ended after 1000"):
        located_weights(NAME, allow_download=True)
    server.breaks_after = None
    assert located_weights(NAME, allow_download=True).read_bytes() == server.content


@pytest.mark.parametrize("wrong", ["content", "size"])
def test_wrong_checksum_is_rejected(server: _Server, wrong: str) -> None:
    server.content = server.content[:-1] + b"?" * (1 if wrong == "content" else 2)
    with pytest.raises(ValueError, match="different SHA-256" if wrong == "content" else "bytes were|were expected"):
        located_weights(NAME, allow_download=True)
    assert cached_files() == []


def test_full_disk_is_reported(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with file_limit(2000), pytest.raises(OSError, match="File too large"):
        located_weights(NAME, allow_download=True)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(".")
        patch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=500))
        with pytest.raises(ValueError, match=r"is larger than the free space in "):
            located_weights(NAME, allow_download=True)
    assert located_weights(NAME, allow_download=True).read_bytes() == server.content


def test_unreachable_server_is_reported(server: _Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match=r"download failed: .*refused"):
        located_weights(NAME, allow_download=True)


def test_concurrent_processes_download_once(server: _Server) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(located_weights(NAME, allow_download=True))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(server.requested_ranges) == 1


def test_commands_download_and_use_weights(server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--weights", NAME, "--allow-download"]
    assert export_main(common) == 0
    exported = load_weights(Path("yolov5n.export.safetensors"))
    assert exported.arrays.keys() == load_weights(tmp_path / "source.pt").arrays.keys()
    assert len(server.requested_ranges) == 1
    assert predict_main([*common, "--source", "none", "--device", "cpu"]) == 2
    assert "none: no such file" in capsys.readouterr().err
    assert val_main([*common, "--data", "none.yaml", "--device", "cpu"]) == 2
    assert "none.yaml: no such dataset yaml" in capsys.readouterr().err
    assert len(server.requested_ranges) == 1
