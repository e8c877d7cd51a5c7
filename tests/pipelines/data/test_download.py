"""`download` of a dataset yaml: an address with its checksum, on request, or nothing. Served from this machine."""

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.data import fetching
from pipelines.data.dataset import load_dataset
from tests.pipelines.data.test_unpack import everything_below, make_zip
from tests.pipelines.data_sets import add_image, write_yaml

NAMES = "names: [a]\n"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, and a few addresses that misbehave."""

    def do_GET(self) -> None:
        if self.path == "/to-a-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/set.zip")
            self.end_headers()
        elif self.path in ("/short", "/silent", "/dripping", "/endless"):
            self.send_response(200)
            self.send_header("Content-Length", "1" + "0" * (18 if self.path == "/endless" else 6))
            self.end_headers()
            self.wfile.write(b"only this")
            if self.path == "/silent":
                self.server.released.wait(20)  # type: ignore[attr-defined]
            while self.path == "/dripping" and not self.server.released.wait(0.1):  # type: ignore[attr-defined]
                self.wfile.write(b".")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with `set.zip`, and the address it is served under."""
    folder = tmp_path_factory.mktemp("served")
    for split in ("train", "val"):
        add_image(folder / "content", f"{split}/a.png", "0 0.5 0.5 0.5 0.5\n")
    files = {f"set/{path.relative_to(folder / 'content')}": path.read_bytes()
             for path in (folder / "content").rglob("*.*")}  # fmt: skip
    make_zip(folder / "set.zip", files)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: _Handler(*arguments, directory=str(folder))
    )
    server.released = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def yaml_for(folder: Path, download: str, *, path: str = "set") -> Path:
    return write_yaml(folder, f"path: {path}\ntrain: images/train\nval: images/val\n{NAMES}download: {download}\n")


def test_nothing_is_fetched_without_the_flag(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    file = yaml_for(tmp_path, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}")
    with pytest.raises(ValueError, match=rf"data\.yaml:2:8: .*give --allow-download to fetch {address}/set\.zip"):
        load_dataset(file)
    assert everything_below(tmp_path) == ["data.yaml"]


@pytest.mark.parametrize("name", ["set.zip", "moved"])
def test_what_is_missing_is_fetched_verified_and_unpacked_once(
    served: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    folder, address = served
    file = yaml_for(tmp_path, f"{{url: '{address}/{name}', sha256: {sha256(folder / 'set.zip').upper()}}}")
    found = load_dataset(file, allow_download=True)
    assert found.train == (tmp_path / "set" / "images" / "train",)
    assert len(everything_below(tmp_path)) == 5
    (folder / "set.zip").unlink()  # what is there is not asked for again
    assert load_dataset(file, allow_download=True) == found


def test_several_archives_make_one_data_set(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    make_zip(folder / "a.zip", {"images/train/a.txt": b""})
    make_zip(folder / "b.zip", {"set/images/val/b.txt": b""})
    entries = ", ".join(f"{{url: '{address}/{n}', sha256: {sha256(folder / n)}}}" for n in ("a.zip", "b.zip"))
    load_dataset(yaml_for(tmp_path, f"[{entries}]"), allow_download=True)
    assert everything_below(tmp_path / "set") == ["images/train/a.txt", "images/val/b.txt"]


def test_another_content_than_stated_is_not_used(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    file = yaml_for(tmp_path, f"{{url: '{address}/set.zip', sha256: {'0' * 64}}}")
    with pytest.raises(ValueError, match=rf"data\.yaml:5:11: .*has the SHA-256 {sha256(folder / 'set.zip')}, the yaml"):
        load_dataset(file, allow_download=True)
    assert everything_below(tmp_path) == ["data.yaml"]


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        ("touch trap", "a script or a description, which is never executed"),
        ("|\n  from pathlib import Path\n  Path('trap').touch()", "never executed"),
        ("bash touch trap", "never executed"),
        ("https://example.org/set.zip", "an address without its checksum"),
        ("[https://example.org/set.zip]", "an address without its checksum"),
        ("{url: https://example.org/set.zip}", "needs an http address `url` and its `sha256`"),
        ("{url: file:///etc/passwd, sha256: a}", "needs an http address"),
        ("{url: ftp://example.org/a, sha256: a}", "needs an http address"),
        ("{url: 'http://a b', sha256: a}", "needs an http address"),
        ("{url: https://example.org/set.zip, sha256: abc}", "64 hexadecimal digits"),
        ("{url: https://example.org/set.zip, sha256: 12, run: touch trap}", "nothing else"),
        ("5", "never executed"),
    ],
)
def test_scripts_and_addresses_without_a_checksum_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data\.yaml:5:\d+: ") as caught:
        load_dataset(yaml_for(tmp_path, download), allow_download=True)
    assert reason in str(caught.value) and "write `download: {url: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path) == ["data.yaml"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.zip", "cannot be fetched: File not found"),
        ("to-a-file", "cannot be fetched"),
        ("short", "cannot be fetched: the connection ended after 9 of 1000000 bytes"),
        ("silent", "cannot be fetched: timed out"),
        ("dripping", r"sends only \d+ bytes a second"),
        ("endless", r"is larger than the .* GB that are free"),
    ],
)
def test_servers_that_misbehave(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(fetching, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(fetching, "_TIMEOUT_SECONDS", 1.0)
    file = yaml_for(tmp_path, f"{{url: '{served[1]}/{name}', sha256: {'0' * 64}}}")
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset(file, allow_download=True)
    assert str(caught.value).startswith(f"{file}:5:11: ") and "\n" not in str(caught.value)
    assert everything_below(tmp_path) == ["data.yaml"]


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    file = yaml_for(tmp_path, f"{{url: 'http://127.0.0.1:{port}/set.zip', sha256: {'0' * 64}}}")
    with pytest.raises(ValueError, match="cannot be fetched"):
        load_dataset(file, allow_download=True)


@pytest.mark.parametrize("path", ["../elsewhere", "/tmp/graph-train-elsewhere", "link/inside"])
def test_a_yaml_writes_only_below_its_folder_or_the_current_one(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    folder, address = served
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    monkeypatch.chdir(home)
    file = yaml_for(home, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}", path=path)
    with pytest.raises(ValueError, match=r"lies outside of .*home"):
        load_dataset(file, allow_download=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home"]


def test_existing_files_are_not_replaced(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    add_image(tmp_path / "set", "val/mine.png")
    file = yaml_for(tmp_path, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}")
    with pytest.raises(ValueError, match=r"set/images is there already and is not replaced"):
        load_dataset(file, allow_download=True)
    assert everything_below(tmp_path / "set") == ["images/val/mine.png"]


def test_a_hostile_archive_leaves_no_trace(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    make_zip(folder / "evil.zip", {"a.txt": b"", "../../evil.txt": b""})
    file = yaml_for(tmp_path, f"{{url: '{address}/evil.zip', sha256: {sha256(folder / 'evil.zip')}}}")
    with pytest.raises(ValueError, match=rf"data\.yaml:5:11: {address}/evil\.zip: .*leaves the folder"):
        load_dataset(file, allow_download=True)
    assert everything_below(tmp_path) == ["data.yaml"]
