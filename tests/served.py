"""A local web server for files and the stream of a network camera."""

import contextlib
import http.server
import io
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

Served = tuple[str, bytes]
"""Content type and content."""


@dataclass
class WebServer:
    """State of a web server that answers GET requests.

    Attributes:
        files: files by path; the content type may be "".
        camera: frames of `/camera`, which repeat endlessly unless `camera_ends`.
        requests: path and Authorization header of each request.
        frozen: while set, the camera sends nothing but keeps the connection open.
    """

    files: dict[str, Served] = field(default_factory=dict)
    camera: list[bytes] = field(default_factory=list)
    camera_ends: bool = False
    frame_seconds: float = 0.02
    frozen: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    """Start a server that runs until the end of the context."""
    state, ended = WebServer(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Authorization")))
            path = self.path.partition("?")[0]
            with contextlib.suppress(ConnectionError):
                if path == "/camera":
                    self.send_camera()
                elif path in state.files:
                    self.send_file(*state.files[path])
                else:
                    self.send_error(404)

        def send_file(self, kind: str, content: bytes) -> None:
            self.send_response(200)
            if kind:
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def send_camera(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            more = True
            while more and not ended.is_set():
                for content in state.camera:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                    self.wfile.write(head.encode() + content + b"\r\n")
                    time.sleep(state.frame_seconds)
                    while state.frozen.is_set() and not ended.wait(0.05):
                        pass
                more = not state.camera_ends

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        state.address = f"http://127.0.0.1:{port}"
        try:
            yield state
        finally:
            ended.set()


@contextlib.contextmanager
def running(server: socketserver.TCPServer) -> Iterator[int]:
    """Run a server in a thread until the end of the context; yield its port."""
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def jpeg_of(pixels: np.ndarray) -> bytes:
    """Return the bytes of a JPEG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95)
    return content.getvalue()
