"""An object store for tests: moto's S3 server on loopback, and a proxy before it that notes and fails requests.

`conftest` has the fixtures `s3`, `proxy` and `bucket` from here. Without the libraries tests that take one are skipped.
"""

import http.client
import http.server
import random
import socket
import struct
import threading
import time

import pytest
from patience import patience

from ldlm import location


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, and fails some: `chance` of them, half with status 500 and half by a reset.

    The next PUT is reset after `hang` seconds, where there are any. `seen` has the (method, path, range) of each. Parts
    of states and tokens are given to `together` at a time, once so many are asked for, where that is a barrier.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as in the server behind it
    port, chance, draw = 0, 0.0, random.Random(0)
    failed, hang, seen, together, waiting, most = 0, 0.0, [], None, 0, 0

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, self.headers.get("Range")))
        if self.hang and self.command == "PUT":
            time.sleep(self.hang)
            type(self).hang = 0.0
            return self.reset()
        if self.together is not None and ("/hidden/c/" in self.path or "/tokens/c/" in self.path):
            self.wait_for_others()
        if self.draw.random() < self.chance:
            type(self).failed += 1
            self.close_connection = True
            return self.reset() if self.draw.random() < 0.5 else self.answer(500, {}, b"injected")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=patience())
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        data, headers = response.read(), dict(response.getheaders())
        connection.close()
        self.answer(response.status, headers, data)

    def wait_for_others(self):
        type(self).waiting += 1
        type(self).most = max(self.most, self.waiting)
        self.together.wait(timeout=patience())
        time.sleep(0.1)  # in which one more that is in flight would come
        type(self).waiting -= 1

    def reset(self):
        # Closing with a linger of zero sends a reset.
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def answer(self, status, headers, data):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def s3():
    """Port of an S3 server."""
    pytest.importorskip("obstore", reason="obstore is in the extra `object-stores`")
    moto_server = pytest.importorskip("moto.server", reason="moto is in the extra `test`")
    # Else a body waits 40 ms for the acknowledgement of its head.
    pytest.importorskip("werkzeug.serving").WSGIRequestHandler.disable_nagle_algorithm = True
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def proxy(s3, monkeypatch):
    """The proxy's class; S3 is reached through it, and its bucket is new."""
    Proxy.port, Proxy.chance, Proxy.failed, Proxy.draw = s3, 0.0, 0, random.Random(0)
    Proxy.hang, Proxy.seen, Proxy.together, Proxy.waiting, Proxy.most = 0.0, [], None, 0, 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    for name, value in {
        "ACCESS_KEY_ID": "testing",
        "SECRET_ACCESS_KEY": "testing",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(location, "RETRY_SECONDS", 3.0)
    yield Proxy
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def bucket(proxy, s3, tmp_path, monkeypatch):
    """A new bucket's URL, with a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"bucket-{abs(hash(tmp_path)) % 10**9}"
    connection = http.client.HTTPConnection("127.0.0.1", s3)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    return f"s3://{name}"
