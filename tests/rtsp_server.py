"""A local RTSP camera (RFC 2326) that sends JPEG frames (RFC 2435) over the same connection."""

import contextlib
import itertools
import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Sequence

from tests.served import running

_CLOCK_HZ = 90_000
_JPEG_PAYLOAD, _TABLES_INCLUDED = 26, 255
_SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 26
a=control:track1
"""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextlib.contextmanager
def rtsp_server(frames: Sequence[bytes], hang_up: threading.Event, *, frame_seconds: float = 0.02) -> Iterator[str]:
    """Run a camera that repeats JPEGs with 4:2:0 chroma until `hang_up` is set; yield its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                while request := self.rfile.readline().decode().split():
                    headers = {}
                    while line := self.rfile.readline().decode().strip():
                        name, _, value = line.partition(":")
                        headers[name.lower()] = value.strip()
                    self.answer(request[0], headers)
                    if request[0] == "PLAY":
                        self.play()
                        return

        def answer(self, method: str, headers: dict[str, str]) -> None:
            rejected = method == "SETUP" and "TCP" not in headers["transport"]
            status = "461 Unsupported Transport" if rejected else "200 OK"
            lines = [f"RTSP/1.0 {status}", f"CSeq: {headers['cseq']}", "Session: 1"]
            body = _SDP.replace("\n", "\r\n") if method == "DESCRIBE" else ""
            if method == "OPTIONS":
                lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == "SETUP" and not rejected:
                lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
            if body:
                lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            self.wfile.write("\r\n".join([*lines, "", body]).encode())

        def play(self) -> None:
            for number in itertools.count():
                if hang_up.is_set():
                    return
                frame = frames[number % len(frames)]
                clock = int(number * frame_seconds * _CLOCK_HZ)
                packet = struct.pack(">BBHII", 0x80, 0x80 | _JPEG_PAYLOAD, number & 0xFFFF, clock, 1) + _payload(frame)
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                time.sleep(frame_seconds)

    with running(_Server(("127.0.0.1", 0), Handler)) as port:
        try:
            yield f"rtsp://127.0.0.1:{port}"
        finally:
            hang_up.set()


def _payload(jpeg: bytes) -> bytes:
    """Strip the Huffman tables of a JPEG file, which must be the standard's default ones."""
    tables, position = b"", 2
    height = width = 0
    while True:
        marker, length = struct.unpack(">HH", jpeg[position : position + 4])
        segment = jpeg[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xFFDB:
            tables += b"".join(segment[start + 1 : start + 65] for start in range(0, len(segment), 65))
        elif marker == 0xFFC0:
            height, width = struct.unpack(">HH", segment[1:5])
        elif marker == 0xFFDA:
            break
    head = struct.pack(">IBBBB", 0, 1, _TABLES_INCLUDED, width // 8, height // 8)
    return head + struct.pack(">BBH", 0, 0, len(tables)) + tables + jpeg[position:-2]
