"""`download` of a dataset yaml: a URL with its checksum, on request only, from a local server."""

import hashlib
import http.server
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from pipelines.data import dataset, fetching
from pipelines.data.dataset import load_dataset
from pipelines.data.index import scan_images
from tests.graph_train.checks.test_convert import write_voc
from tests.pipelines.data.test_unpack import all_files, make_zip
from tests.pipelines.data_sets import add_image, write_yaml
from tests.python_process import run_python
from tests.served import running

NAMES = "names: [a]\n"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A handler that serves the files of a folder, and a few paths that misbehave."""

    requests: ClassVar[list[tuple[str, str | None]]] = []
    breaks_after: int | None = None
    """Bytes of `set.zip` before the connection is closed."""

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/set.zip":
            self._send_zip()
        elif self.path == "/to-a-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/set.zip")
            self.end_headers()
        elif self.path == "/dripping-headers":
            self.send_response(200)
            self.flush_headers()
            while not self.server.released.wait(0.1):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
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

    def _send_zip(self) -> None:
        file = Path(self.directory) / "set.zip"
        content = file.read_bytes() if file.exists() else b""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.breaks_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Serve a folder with `set.zip`; yield the folder and its address."""
    folder = tmp_path_factory.mktemp("served")
    for split in ("train", "val"):
        add_image(folder / "content", f"{split}/a.png", "0 0.5 0.5 0.5 0.5\n")
    files = {
        f"set/{path.relative_to(folder / 'content')}": path.read_bytes() for path in (folder / "content").rglob("*.*")
    }
    make_zip(folder / "set.zip", files)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: _Handler(*arguments, directory=str(folder))
    )
    server.released = threading.Event()  # type: ignore[attr-defined]
    with running(server) as port:
        yield folder, f"http://127.0.0.1:{port}"
        server.released.set()  # type: ignore[attr-defined]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def yaml_for(folder: Path, download: str, *, path: str = "set") -> Path:
    return write_yaml(folder, f"path: {path}\ntrain: images/train\nval: images/val\n{NAMES}download: {download}\n")


def test_nothing_is_downloaded_without_flag(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    file = yaml_for(tmp_path, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}")
    with pytest.raises(ValueError, match=rf"data\.yaml:2:8: .*use --allow-download to download {address}/set\.zip"):
        load_dataset(file)
    assert all_files(tmp_path) == ["data.yaml"]


@pytest.mark.parametrize("name", ["set.zip", "moved"])
def test_missing_data_is_downloaded_verified_and_unpacked_once(
    served: tuple[Path, str], tmp_path: Path, name: str
) -> None:
    folder, address = served
    file = yaml_for(tmp_path, f"{{url: '{address}/{name}', sha256: {sha256(folder / 'set.zip').upper()}}}")
    found = load_dataset(file, allow_download=True)
    assert found.train == (tmp_path / "set" / "images" / "train",)
    assert len(all_files(tmp_path)) == 5
    (folder / "set.zip").unlink()  # existing files are not downloaded again
    assert load_dataset(file, allow_download=True) == found


def test_several_archives_form_one_data_set(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    make_zip(folder / "a.zip", {"images/train/a.txt": b""})
    make_zip(folder / "b.zip", {"set/images/val/b.txt": b""})
    entries = ", ".join(f"{{url: '{address}/{n}', sha256: {sha256(folder / n)}}}" for n in ("a.zip", "b.zip"))
    load_dataset(yaml_for(tmp_path, f"[{entries}]"), allow_download=True)
    assert all_files(tmp_path / "set") == ["images/train/a.txt", "images/val/b.txt"]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("set.zip", {"sha256": "0" * 64}, rf"has the SHA-256 [0-9a-f]{{64}}, but the yaml has {'0' * 64}"),
        ("set.zip", {"bytes": 7}, r"has \d+ bytes, but 7 were expected; it is not used"),
        ("set.zip", {"form": "voc"}, r"set\.zip: no VOCdevkit"),
        ("evil.zip", {}, r"evil\.zip: .*is outside the target folder"),
    ],
)
def test_rejected_archive_leaves_no_files(
    served: tuple[Path, str], tmp_path: Path, name: str, keys: dict[str, object], message: str
) -> None:
    folder, address = served
    make_zip(folder / "evil.zip", {"a.txt": b"", "../../evil.txt": b""})
    entry = {"url": f"{address}/{name}", "sha256": sha256(folder / name), **keys}
    file = yaml_for(tmp_path, yaml.safe_dump(entry, default_flow_style=True, width=1000))
    with pytest.raises(ValueError, match=rf"data\.yaml:5:11: .*{message}"):
        load_dataset(file, allow_download=True)
    assert all_files(tmp_path) == ["data.yaml"]


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        ("touch trap", "a script or a description, which is never executed"),
        ("|\n  from pathlib import Path\n  Path('trap').touch()", "never executed"),
        ("bash touch trap", "never executed"),
        ("https://example.org/set.zip", "a URL without its checksum"),
        ("[https://example.org/set.zip]", "a URL without its checksum"),
        ("{url: https://example.org/set.zip}", "must have an http(s) `url` and its `sha256`"),
        ("{url: file:///etc/passwd, sha256: a}", "must have an http"),
        ("{url: ftp://example.org/a, sha256: a}", "must have an http"),
        ("{url: 'http://a b', sha256: a}", "must have an http"),
        ("{url: https://example.org/set.zip, sha256: abc}", "64 hexadecimal digits"),
        ("{url: https://example.org/set.zip, sha256: 12, run: touch trap}", "optional keys are"),
        ("5", "never executed"),
    ],
)
def test_scripts_and_urls_without_checksum_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data\.yaml:5:\d+: ") as caught:
        load_dataset(yaml_for(tmp_path, download), allow_download=True)
    assert reason in str(caught.value) and "write `download: {url: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all_files(tmp_path) == ["data.yaml"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.zip", "download failed: File not found"),
        ("to-a-file", "download failed"),
        ("short", "download failed: the connection ended after 9 of 1000000 bytes"),
        ("silent", "download failed: timed out"),
        ("dripping", r"is too slow \(\d+ bytes per second\)"),
        ("dripping-headers", "download failed: no complete response in time"),
        ("endless", r"is larger than the free space in"),
    ],
)
def test_misbehaving_servers_are_reported(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(fetching, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(fetching, "_TIMEOUT_SECONDS", 1.0)
    file = yaml_for(tmp_path, f"{{url: '{served[1]}/{name}', sha256: {'0' * 64}}}")
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    with pytest.raises(ValueError, match=reason) as caught:
        load_dataset(file, allow_download=True)
    assert str(caught.value).startswith(f"{file}:5:11: ") and "\n" not in str(caught.value)
    left = [path for path in all_files(tmp_path) if path != "data.yaml" and not path.endswith(".lock")]
    assert bool(left) == ("bytes kept; run again" in str(caught.value))
    assert all(path.startswith(".set.download/") and path.endswith(".part") for path in left)


def test_unreachable_server_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    file = yaml_for(tmp_path, f"{{url: 'http://127.0.0.1:{port}/set.zip', sha256: {'0' * 64}}}")
    with pytest.raises(ValueError, match="download failed"):
        load_dataset(file, allow_download=True)


@pytest.mark.parametrize("path", ["../elsewhere", "/tmp/graph-train-elsewhere", "link/inside"])
def test_yaml_writes_only_below_its_folder_or_cwd(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    folder, address = served
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(tmp_path)
    monkeypatch.chdir(home)
    file = yaml_for(home, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}", path=path)
    with pytest.raises(ValueError, match=r"is outside .*home"):
        load_dataset(file, allow_download=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home"]


def test_existing_files_are_not_overwritten(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    add_image(tmp_path / "set", "val/mine.png")
    file = yaml_for(tmp_path, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}")
    with pytest.raises(ValueError, match=r"set/images already exists and is not overwritten"):
        load_dataset(file, allow_download=True)
    assert all_files(tmp_path / "set") == ["images/val/mine.png"]


def test_partial_download_is_kept(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second of two archives is cut off, the next run requests only the missing bytes."""
    folder, address = served
    make_zip(folder / "labels.zip", {"set/labels/train/more.txt": b"0 .5 .5 1 1\n"})
    names = ("labels.zip", "set.zip")
    entries = ", ".join(
        f"{{url: '{address}/{name}', sha256: {sha256(folder / name)}, bytes: {(folder / name).stat().st_size}}}"
        for name in names
    )
    file = yaml_for(tmp_path, f"[{entries}]")
    whole = (folder / "set.zip").read_bytes()
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(_Handler, "breaks_after", 100)
        with pytest.raises(ValueError, match=rf"100 of {len(whole)} bytes kept; run again to continue"):
            load_dataset(file, allow_download=True)
    assert sorted(path.suffix for path in (tmp_path / ".set.download").iterdir()) == [".lock", ".lock", ".part", ".zip"]
    (folder / "labels.zip").unlink()
    monkeypatch.setattr(_Handler, "requests", [])
    load_dataset(file, allow_download=True)
    assert _Handler.requests == [("/set.zip", "bytes=100-")]
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["data.yaml", "set"]


def shipped(name: str, served: tuple[Path, str], archives: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the URLs, sizes and checksums of the archives in a shipped yaml."""
    folder, address = served
    text = (dataset._SHIPPED / name).read_text()
    document = yaml.safe_load(text)
    entries = document["download"] if isinstance(document["download"], list) else [document["download"]]
    assert [entry["url"].rpartition("/")[2] for entry in entries] == archives
    for entry in entries:
        file = folder / entry["url"].rpartition("/")[2]
        entry |= {"url": f"{address}/{file.name}", "sha256": sha256(file), "bytes": file.stat().st_size}
    yamls = folder / "yamls"
    yamls.mkdir()
    (yamls / name).write_text(yaml.safe_dump(document, sort_keys=False))
    monkeypatch.setattr(dataset, "_SHIPPED", yamls)


def image_bytes(tmp_path: Path) -> bytes:
    return add_image(tmp_path / "picture", "a.jpg").read_bytes()


def test_coco128_by_name(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = image_bytes(tmp_path)
    make_zip(
        served[0] / "coco128.zip",
        {
            "coco128/images/train2017/9.jpg": picture,
            "coco128/labels/train2017/9.txt": b"7 .5 .5 1 1",
            "coco128/README.txt": b"read me",
            "coco128/LICENSE": b"left",
        },
    )
    shipped("coco128.yaml", served, ["coco128.zip"], monkeypatch)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    found = load_dataset("coco128", allow_download=True)
    assert found.train == (here / "datasets/coco128/images/train2017",)
    index = scan_images(found.train, found.class_names)
    assert [rows[:, 0].tolist() for rows in index.labels] == [[7.0]]


def test_coco_by_name(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One archive has lists and labels, two have photos."""
    picture, labels = image_bytes(tmp_path), dict[str, bytes]()
    for split, number in (("train", 9), ("val", 139)):
        name = f"{split}2017/{number:012}"
        make_zip(served[0] / f"{split}2017.zip", {f"{name}.jpg": picture})
        labels |= {
            f"coco/labels/{name}.txt": b"16 .5 .5 .2 .2\n",
            f"coco/{split}2017.txt": f"./images/{name}.jpg\n".encode(),
        }
    make_zip(served[0] / "coco2017labels.zip", {**labels, "coco/annotations/instances_val2017.json": b"{}"})
    shipped("coco.yaml", served, ["coco2017labels.zip", "val2017.zip", "train2017.zip"], monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = load_dataset("coco.yaml", allow_download=True)
    for split in ("train", "val"):
        index = scan_images(found.split(split), found.class_names)  # type: ignore[arg-type]
        assert [rows[:, 0].tolist() for rows in index.labels] == [[16.0]] and not index.problems
    assert (tmp_path / "datasets/coco/annotations/instances_val2017.json").is_file()


def write_tar(file: Path, folder: Path) -> None:
    with tarfile.open(file, "w") as archive:
        archive.add(folder, "VOCdevkit")
    shutil.rmtree(folder)


def test_voc_by_name(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official archives: xml becomes YOLO rows per split and year; difficult objects are skipped."""
    tars = {
        "VOCtrainval_06-Nov-2007.tar": ("2007", ("train", "val")),
        "VOCtest_06-Nov-2007.tar": ("2007", ("test",)),
        "VOCtrainval_11-May-2012.tar": ("2012", ("train", "val")),
    }
    for file, (year, sets) in tars.items():
        folder = tmp_path / "devkit" / f"VOC{year}"
        for kind in sets:
            write_voc(folder, f"{year}_{kind}", ("dog", 0, 1, 1, 21, 16), ("cat", 1, 1, 1, 9, 9))
            (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
            for name in (kind, f"dog_{kind}", "trainval"):
                (folder / f"ImageSets/Main/{name}.txt").write_text(f"{year}_{kind}\n")
        write_tar(served[0] / file, tmp_path / "devkit")
    shipped("VOC.yaml", served, list(tars), monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = load_dataset("VOC", allow_download=True)
    root = tmp_path / "datasets/VOC"
    assert [source.name for source in found.train] == ["train2012", "train2007", "val2012", "val2007"]
    assert all_files(root / "images") == [
        f"{name}/{name[-4:]}_{name[:-4]}.jpg" for name in ("test2007", "train2007", "train2012", "val2007", "val2012")
    ]
    assert (root / "labels/test2007/2007_test.txt").read_text() == "11 0.25 0.25 0.5 0.5\n"
    assert not list(root.rglob("*.xml")) and not (tmp_path / "datasets/.VOC.download").exists()
    index = scan_images(found.val, found.class_names)
    assert index.labels[0].tolist() == [[11.0, 0.25, 0.25, 0.5, 0.5]] and not index.problems


def test_two_processes_download_once(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = served
    file = yaml_for(tmp_path, f"{{url: '{address}/set.zip', sha256: {sha256(folder / 'set.zip')}}}")
    code = f"from pipelines.data.dataset import load_dataset; load_dataset({str(file)!r}, allow_download=True)"
    monkeypatch.setattr(_Handler, "requests", [])
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert [path for path, _ in _Handler.requests] == ["/set.zip"]


@pytest.mark.parametrize("name", ["coco128", "VOC"])
def test_command_prints_data_url_size_and_terms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print one line with URL, size and terms; exit code 2."""
    code = f"import sys; from graph_train.cli.check import main; sys.exit(main(['--data', {name!r}]))"
    ran = run_python("-c", code, cwd=tmp_path)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "use --allow-download to download http" in ran.stderr and " MB; " in ran.stderr and "Flickr" in ran.stderr
