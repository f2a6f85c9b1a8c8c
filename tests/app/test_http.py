"""Malformed requests at the server itself, in a process of its own: it answers each, and goes on serving.

The requests come from a seed. None of the answers may tell what happens inside: no traceback, no path of the
server's, no file of the machine's.
"""

import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra app")

ROOT = Path(__file__).parents[2]
SECRET = "canary-5d20"
API = "/gradio_api"
PATIENCE = 180  # seconds; shared machines are slow
GOOD = ["tiny", "", "", "ddim", "ddim", 1, 3.0, 1, 0, "auto", "auto"]
# Every one that runs for long, or starts a training, has something wrong in it already.
CALLS = {
    "sample": GOOD,
    "invert": [None, "tiny", "", 2],
    "edit": [None, "emoji", "a", "b", 3, 3.0, 0.8, "bdia", False],
    "erase": [[], [], 1, 1, 1, 1, "emoji", True, "a heart", "", 1, 3.0, 1, 0],
    "compare": ["emoji", "", 1, 1, 3.0, 0, 0],
    "steer": ["emoji", "a car", "", "nasa", "0", 1, 1, -1],
    "train": ["spm", "", -1, 0],
    "stop_training": [],
    "resume_training": [],
}
NAN, INF = float("nan"), float("inf")


def payloads(canary: Path, trap: str) -> list:
    """Values in the place of good ones; the files among them are none that were uploaded."""
    meta = {"meta": {"_type": "gradio.FileData"}}
    up = "../" * 12
    paths = [
        "/etc/passwd",
        f"{up}etc/passwd",
        str(canary),
        f"{up}{canary}",
        "/proc/self/environ",
        "",
        ".",
        "a\0b",
    ]
    files = [{"path": path, **meta} for path in [*paths, None, 7, [], trap, "file:///etc/passwd"]]
    files += [
        {"path": "a.png", "url": trap, **meta},
        {"path": str(canary), "orig_name": f"{up}x", "size": -1, "is_stream": True, **meta},
        {"path": str(canary), "mime_type": 7, **meta},
        {"url": trap, **meta},
        {**meta},
    ]
    deep: list = []
    for _ in range(200):
        deep = [deep]
    return [
        *(None, True, False, [], [None], {}, {"a": {"b": 1}}, [[]], deep),
        *(NAN, INF, -INF, -1, 0, 2.5, 1e308, -1e308, 10**400, 2**63, "NaN", "12", "1e999"),
        *("", " ", "a\0b", "\ud800", "\u202e", "x" * 20_000, "<script>alert(1)</script>", "{0.__class__}"),
        *("../emoji", f"{up}etc", "google/ddpm-cat-256", trap, str(canary.parent)),
        *({"__type__": "update", "value": str(canary)}, {"path": str(canary)}),
        *files,
        *([file] for file in files[:6]),
    ]


def bodies(pick: random.Random) -> list[bytes]:
    """What is no request of Gradio's, or hardly."""
    data = json.dumps({"data": GOOD}).encode()
    return [
        *(b"", b"{", b"[]", b"7", b"null", b'"x"', b"{}", b"NaN", b"\xff\xfe\x00", data[:-1], data * 2),
        *(b'{"data": null}', b'{"data": 7}', b'{"data": "x"}', b'{"data": {}}', b'{"data": []}'),
        *(b'{"data": [NaN, Infinity, -Infinity]}', b'{"data": [1e999]}', b'{"data": [' + b"[" * 5000),
        *(b'{"data": [' + b"1," * 5000 + b"1]}", b'{"data": [' + b"9" * 6000 + b"]}"),
        *(b'{"data": [], "session_hash": {"a": 1}}', b'{"data": [], "fn_index": 1e99}'),
        *(b'{"data": [], "event_data": 7, "trigger_id": "x", "batched": "y"}', b'{"data": [], "request": 7}'),
        pick.randbytes(300),
        b'{"data": ["' + b"x" * 2_000_000 + b'"]}',
    ]


def routes(canary: Path, trap: str) -> list[str]:
    """Addresses that lead nowhere, or out of what is served."""
    up, coded = "../" * 12, "..%2f" * 12
    out = [
        *("/etc/passwd", f"{up}etc/passwd", f"{coded}etc%2fpasswd", str(canary), f"{coded}{canary}"),
        *("%00", "a%00b", "\\\\host\\a", "C:/Windows/win.ini", "file:///etc/passwd", "%ff", "~", "x" * 3000),
    ]
    quoted = [urllib.parse.quote(path, safe="/%:") for path in out]
    return [
        *(f"{API}/file={path}" for path in [*quoted, urllib.parse.quote(trap, safe="/:")]),
        *(f"/static/{path}" for path in quoted[:6]),
        *(f"/assets/{path}" for path in quoted[:6]),
        *(f"/svelte/{path}" for path in quoted[1:4]),
        *(f"{API}/custom_component/{part}/server/component/a" for part in ("1", "..%2f..", "%00", "x" * 500)),
        *(f"{API}/custom_component/1/client/component/{path}" for path in quoted[:4]),
        *(
            f"{API}/proxy={urllib.parse.quote(address, safe='')}"
            for address in (trap, "file:///etc/passwd", "x")
        ),
        *(
            f"{API}/stream/a/{run}/{part}/playlist.m3u8"
            for run, part in (("x", "1"), ("1", "x"), ("-1", "-1"))
        ),
        *(f"{API}/call/{name}" for name in ("sample/none", "none/none", "../../etc", "sample/%00")),
        *(
            f"{API}/queue/data",
            f"{API}/queue/data?session_hash=none",
            f"{API}/upload_progress?upload_id=none",
        ),
        *(f"{API}/deep_link", f"{API}/deep_link?session_hash=..%2f..%2fx", "/?deep_link=..%2f..%2f..%2fetc"),
        *(
            f"{API}/run-history/buckets",
            f"{API}/run-history/records?limit=-1",
            f"{API}/runs",
            f"{API}/info?x=1",
        ),
        *(
            "/monitoring",
            "/monitoring/none",
            "/pwa_icon/none",
            "/manifest.json",
            "/login",
            "/logout",
            "/none",
        ),
    ]


def forms() -> list[tuple[dict[str, str], bytes]]:
    """Uploads that are none."""
    head = {"Content-Type": "multipart/form-data; boundary=b"}

    def part(name: str, filename: str, content: bytes = b"x") -> bytes:
        disposition = f'form-data; name="{name}"; filename="{filename}"'
        return f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n--b--\r\n"

    names = ("../../../../tmp/x", "/etc/passwd", "a\\..\\b", "x" * 400, "", ".", "..", "%2e%2e%2fx", "a;b\tc")
    return [
        *((head, part("files", name)) for name in names),
        *((head, body) for body in (b"", b"--b", b"--b--\r\n", b"--c\r\n\r\nx", part("none", "a")[:-9])),
        ({"Content-Type": "multipart/form-data"}, part("files", "a")),
        ({"Content-Type": "application/json"}, b"{}"),
        ({}, b"x"),
    ]


def requests(pick: random.Random, canary: Path, trap: str):
    """(method, path, headers, body) of all of them, in an order that the seed gives."""
    js = {"Content-Type": "application/json"}
    made: list[tuple[str, str, dict[str, str], bytes]] = []
    for name, good in CALLS.items():
        for value in pick.sample(payloads(canary, trap), 14):
            data = list(good) or [value]
            data[pick.randrange(len(data))] = value
            made.append(("POST", f"{API}/call/{name}", js, json.dumps({"data": data}).encode()))
        for data in (good[:-1], [*good, None], [None] * len(good), [{}] * 40, []):
            made.append(("POST", f"{API}/call/{name}", js, json.dumps({"data": [NAN, *data]}).encode()))
    for body in bodies(pick):
        paths = ("call/sample", "queue/join", "component_server", "run/sample", "call/v2/sample")
        for path in pick.sample(paths, 2):
            made.append(("POST", f"{API}/{path}", js, body))
    for path in (
        "call/none",
        "call/%00",
        "api/predict",
        "reset",
        "cancel",
        "stream/none",
        "process_recording",
    ):
        for body in pick.sample(bodies(pick), 3):
            made.append(("POST", f"{API}/{path}", js, body))
    for index in (-1, 10**9, 2.5, "x", None, NAN):
        body = {"data": [None] * 4, "fn_index": index, "session_hash": "a", "trigger_id": index}
        made.append(("POST", f"{API}/queue/join", js, json.dumps(body).encode()))
    made += [("GET", path, {}, b"") for path in routes(canary, trap)]
    made += [
        (method, f"{API}/call/sample", js, b"{}") for method in ("PUT", "DELETE", "PATCH", "HEAD", "GET", "X")
    ]
    made += [("POST", f"{API}/upload", headers, body) for headers, body in forms()]
    pick.shuffle(made)
    return made


def raw(port: int, data: bytes) -> None:
    """Bytes that are no HTTP; whether there is an answer is left open."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    with stream, contextlib.suppress(OSError):
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        stream.recv(65536)


class Server:
    """The demo in a process of its own."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "dmkit", "app", "--device=cpu", f"--port={self.port}", *options]
        self.log = folder / "log.txt"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream)

    def ask(self, method: str, path: str, headers=None, body: bytes = b"") -> tuple[int, str]:
        """Status and text of an answer; of a call, with what its event said."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            reply = connection.getresponse()
            status = reply.status
            try:
                text = reply.read().decode("utf-8", errors="replace")
            except http.client.IncompleteRead as cut:  # a stream that the server gave up
                text = cut.partial.decode("utf-8", errors="replace")
        finally:
            connection.close()
        if method == "POST" and status == 200 and path.startswith(f"{API}/call/"):
            event = json.loads(text)["event_id"]
            return self.ask("GET", f"{path.replace('/call/v2/', '/call/')}/{event}")
        return status, text

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                self.ask("GET", "/config")
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.3)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(unconditional, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    options = (f"--models={unconditional.root}", f"--adapters={adapters}", f"--runs={folder / 'runs'}")
    served = Server(folder, *options)
    try:
        served.wait()
        yield served
    finally:
        served.close()


def test_visitors_who_come_while_it_starts_are_served(server):
    """Imports and models load once, for all of them."""
    calls = {
        "sample": GOOD,
        "steer": ["emoji-one-step", "a car", "a red car", "nasa", "0.3", 1, 1, 0],
        "compare": ["emoji-one-step", "a car", 1, 1, 3.0, 1, 0],
    }
    json_type = {"Content-Type": "application/json"}

    def call(name):
        return server.ask("POST", f"{API}/call/{name}", json_type, json.dumps({"data": calls[name]}).encode())

    with ThreadPoolExecutor(len(calls)) as pool:
        said = [text for _, text in pool.map(call, calls)]
    assert all("event: complete" in text for text in said), (said, server.log.read_text()[-3000:])


def test_no_malformed_request_ends_or_opens_the_server(server, unconditional, adapters, tmp_path):
    (tmp_path / "home").mkdir()
    canary = tmp_path / "home" / "notes.png"
    canary.write_text(SECRET)
    inside = ["Traceback", "site-packages", 'File "', SECRET, "root:", str(ROOT), sys.prefix]
    # Uploads and results name their files, and shown Python the model's folder; refusals name nothing.
    more = ["dmkit-app-", str(unconditional.root), str(adapters)]
    wrong, count = [], 0
    with socket.create_server(("127.0.0.1", 0)) as trap:
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        for method, path, headers, body in requests(random.Random(0), canary, address):
            count += 1
            status, text = server.ask(method, path, headers, body)
            refused = status >= 400 or "event: error" in text
            told = [word for word in [*inside, *more * refused] if word in text]
            if told or not 100 <= status < 600:
                wrong.append(f"{method} {path[:90]} {body[:90]!r}: {status}, told {told}: {text[:200]!r}")
            assert server.process.poll() is None, server.log.read_text()[-3000:]
        for data in (
            b"\0" * 500,
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ):
            raw(server.port, data)
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came: the server asks nothing of other machines
            trap.accept()
    assert count >= 300
    assert not wrong, "\n".join(wrong)
    assert canary.read_text() == SECRET
    assert not (server.log.parent / "runs").exists()
    good = json.dumps({"data": GOOD}).encode()
    status, text = server.ask("POST", f"{API}/call/sample", {"Content-Type": "application/json"}, good)
    assert "event: complete" in text, server.log.read_text()[-3000:]
    assert "ddim" in text
