"""Locations of feature stores: a local folder, or a prefix of an object store such as `s3://bucket/features`.

A local location is a `pathlib.Path`. `ObjectPath` has those of its methods that a store needs. An object is written
whole or not at all, by one PUT or a multipart upload, and is then durable. Object stores have no renames and no
locks; `leases` make do with objects that are put only if there is none.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ldlm.errors import InputError, StorageError

SCHEMES = ("s3", "gs", "az")
RETRIES = 6  # of a request, after server errors, resets and time-outs, with exponential backoff
RETRY_SECONDS = 60.0  # from the first failure to the last attempt
REQUEST_SECONDS = 300.0  # of one attempt: in one request the service copies a whole file of a shard
REQUEST_BYTES = 5 * 2**30  # most that S3 copies in one
PART_BYTES = 2**23  # smallest part of a file that is uploaded in parts, of which `AT_ONCE` are in memory
AT_ONCE = 4
MOST_PARTS = 10_000  # of an object of S3
MOST_DELETED = 1000  # objects by one request to S3
STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd", "/proc")  # a shell's >(…) is in /dev/fd


@dataclass(frozen=True)
class ObjectPath:
    """A key, or the prefix of several, in an object store. `root` opens it; two are equal if their URLs are."""

    root: Bucket
    key: str

    def __str__(self) -> str:
        return f"{self.root.url}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.root, f"{self.key}/{name}".strip("/"))

    def __lt__(self, other: ObjectPath) -> bool:
        return self.key < other.key

    @property
    def name(self) -> str:
        """Last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return PurePosixPath(self.key).suffix

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """The key relative to that of `other`."""
        return PurePosixPath(self.key).relative_to(other.key)

    def is_file(self) -> bool:
        """Whether an object of this name exists."""
        return self._size() is not None

    def is_dir(self) -> bool:
        """Whether there are objects below."""
        return bool(self._list(limit=1))

    def exists(self) -> bool:
        """Whether an object of this name exists, or one below it."""
        return self.is_file() or self.is_dir()

    def size(self) -> int:
        """Bytes of the object; FileNotFoundError when there is none."""
        found = self._size()
        if found is None:
            raise FileNotFoundError(str(self))
        return found

    def _size(self) -> int | None:
        try:
            return self.root.call("head", self.key)["size"]
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """Contents of the object."""
        return self.root.call("get", self.key)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Contents of the object, decoded as UTF-8."""
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, length: int) -> bytes:
        """Part of the object."""
        return self.root.call("get_range", self.key, start=start, length=length).to_bytes()

    def write_bytes(
        self, data: bytes | memoryview, *, once: bool = False, still: Callable[[], bool] = lambda: True
    ) -> bool:
        """Put the object, whole or not at all; returns whether it was put.

        With `once`, an object that exists is kept, and `still` is asked before each attempt.
        """
        if not once:
            return self.root.call("put", self.key, data) is not None
        return self._again(lambda: self.root.call("put", self.key, data, mode="create"), still) is not None

    def _again(self, request: Callable[[], Any], still: Callable[[], bool] = lambda: True) -> Any:
        """The answer to a request that obstore doesn't repeat after a reset, since the first may have been carried out.

        Each attempt is made only if `still` says so; else the answer is None.
        """
        ends = math.inf
        for attempt in itertools.count():
            if not still():
                return None
            try:
                return request()
            except StorageError:
                ends = min(ends, time.monotonic() + RETRY_SECONDS)
                if attempt == RETRIES or time.monotonic() > ends:
                    raise
                time.sleep(min(8.0, 0.1 * 2**attempt))
        raise AssertionError

    def upload(self, file: IO[bytes]) -> None:
        """Put the object from an open file, whole or not at all, with a few parts of it in memory."""
        part = max(PART_BYTES, -(-file.seek(0, os.SEEK_END) // MOST_PARTS))

        def put() -> None:
            file.seek(0)
            self.root.call("put", self.key, file, chunk_size=part, max_concurrency=AT_ONCE)

        self._again(put)

    def copy_to(self, other: ObjectPath) -> None:
        """Have the service copy the object over `other`, whole or not at all; FileNotFoundError when there is none."""
        self.root.call("copy", self.key, other.key)

    def unlink(self, missing_ok: bool = False, *, still: Callable[[], bool] = lambda: True) -> None:
        """Delete the object, if `still` says so before each attempt.

        A name that other processes use again needs `still`: an attempt whose answer was lost may have deleted the
        object, and the next would delete theirs.
        """
        if not missing_ok:
            self.size()
        with suppress(FileNotFoundError):  # some services say so, and so does a retry whose first answer was lost
            self._again(lambda: self.root.call("delete", self.key), still)

    def unlink_below(self, still: Callable[[], bool]) -> None:
        """Delete the objects below, many by one request, as long as `still` says so before each request.

        Those that are put meanwhile may stay.
        """
        gone = True
        while gone:
            keys, gone = self._list(), False
            for start in range(0, len(keys), MOST_DELETED):
                some = keys[start : start + MOST_DELETED]
                try:
                    self._again(partial(self.root.call, "delete_all", self.key, some), still)
                except FileNotFoundError:  # another process deletes them too, and some services then keep the others
                    gone = True

    def rglob(self, pattern: str = "*") -> Iterator[ObjectPath]:
        """The objects below whose names match, in order."""
        found = (ObjectPath(self.root, key) for key in sorted(self._list()))
        return (path for path in found if PurePosixPath(path.name).match(pattern))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """The objects directly below whose names match, in order."""
        depth = len(PurePosixPath(self.key).parts) + 1
        return (path for path in self.rglob(pattern) if len(PurePosixPath(path.key).parts) == depth)

    def _list(self, limit: int | None = None) -> list[str]:
        return [entry["path"] for entry in self.root.call("list", f"{self.key}/", limit=limit)]

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below, by relative name."""
        start = len(self.key) + 1
        return {entry["path"][start:]: entry["size"] for entry in self.root.call("list", f"{self.key}/", limit=None)}


Location = Path | ObjectPath


def passing(check: Callable[[], None]) -> Callable[[], bool]:
    """A question to be asked before each attempt, whose answer is yes unless `check` raises an error."""

    def still() -> bool:
        check()
        return True

    return still


@dataclass(frozen=True)
class Bucket:
    """A bucket, whose requests fail with a one-line error after `RETRIES` retries."""

    url: str  # s3://bucket

    @cached_property
    def store(self) -> Any:
        """obstore's client of the bucket. Credentials, region and AWS_ENDPOINT_URL come from the environment."""
        return self.below("")

    def below(self, prefix: str) -> Any:
        """obstore's client of a prefix."""
        try:
            from obstore.store import from_url
        except ImportError:
            raise InputError(
                f"{self.url} needs obstore: pip install 'ldlm[object-stores]', or -e '.[object-stores]' in a checkout"
            ) from None
        retry: Any = {
            "max_retries": RETRIES,
            # obstore counts from the start of the request, which may fail at its end
            "retry_timeout": timedelta(seconds=REQUEST_SECONDS + RETRY_SECONDS),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=8), "base": 2},
        }
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")  # a server of one's own, like MinIO
        client: Any = {"allow_http": plain, "timeout": timedelta(seconds=REQUEST_SECONDS)}
        return from_url(f"{self.url}/{prefix}", retry_config=retry, client_options=client)

    def call(self, operation: str, key: str, *args: Any, **options: Any) -> Any:
        """Call one of obstore's functions. `list` gives entries, `get` bytes, and a put None if the object exists.

        `delete_all` deletes the keys of a list. FileNotFoundError when there is no such object, `StorageError` when the
        service fails.
        """
        import obstore
        from obstore import exceptions

        store = self.store
        try:
            if operation == "list":
                entries = itertools.chain.from_iterable(obstore.list(store, key))
                return list(itertools.islice(entries, options["limit"]))
            if operation == "get":
                return obstore.get(store, key).bytes().to_bytes()
            if operation == "delete_all":
                return obstore.delete(store, *args)
            return getattr(obstore, operation)(store, key, *args, **options)
        except exceptions.AlreadyExistsError:  # another process has put it
            return None
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url}/{key}") from None
        except exceptions.BaseError as error:
            reason = str(error).strip().splitlines()[0]
            raise StorageError(
                f"{self.url}/{key}: {operation} failed, with up to {RETRIES} retries ({reason}); what is finished is "
                f"safe: run the same command again"
            ) from None


def user_cache() -> Path:
    """The folder for what may be deleted any time: `ldlm` in XDG_CACHE_HOME, or in ~/.cache if that is not absolute."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "ldlm"


def folder_name(path: Path) -> str:
    """The name of a folder, even of `.`; that of a link is its own."""
    return Path(os.path.abspath(path)).name


def beside(path: Path, name: str) -> Path:
    """The path of another name in the folder that `path` is in, even for `.`; beside a link if it is one."""
    named = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return named.parent / name


def folder_names(paths: Sequence[Path]) -> list[str]:
    """Names for folders, usable as folder names: the shortest ends of their paths that are all different.

    `InputError` if two paths lead to one folder.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"{', '.join(map(str, paths))} name a folder twice; give each once")
    # Links keep their own names, and a name with the root would be an absolute path.
    parts = [Path(os.path.abspath(path)).parts[1:] for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["-".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("paths of different folders differ")


def local(*named: str | Location | None) -> list[Path]:
    """The inputs that are files or folders on this machine; others are objects, names on the hub, or not given."""
    paths = [Path(one) for one in named if isinstance(one, str | Path)]
    return [path for path in paths if path.exists()]


def locate(where: str | Path) -> Location:
    """The location that a user names: a local path, or `s3://bucket/prefix`."""
    if isinstance(where, Path) or "://" not in where:
        return Path(where)
    scheme, _, rest = where.partition("://")
    if scheme not in SCHEMES:
        raise InputError(f"{where}: {scheme} is not among the object stores {', '.join(SCHEMES)}")
    bucket, _, key = rest.strip("/").partition("/")
    if not bucket or not key:
        raise InputError(f"{where} must name a bucket and a prefix in it, like {scheme}://bucket/features")
    return ObjectPath(Bucket(f"{scheme}://{bucket}"), key)


def check_output(path: Path, example: str, *, flag: str = "--output", without: str = "") -> None:
    """`InputError` when `path`, which names the file to write, is a folder, a device, a pipe or `-`.

    `without` says what happens without the flag, if it may be left out.
    """
    streams = path == Path("-") or any(Path(os.path.abspath(path)).is_relative_to(stream) for stream in STREAMS)
    if path.is_dir() and not streams:
        raise InputError(f"{path} is a folder; {flag} names the file to write, for example {path / example}")
    if streams or (path.exists() and not path.is_file()):
        remedy = f"{flag} names the file to write, for example {example}"
        more = f"; without it {without}" if without else ""
        raise InputError(f"{path} is a device or a pipe, not a file; {remedy}{more}")


def check_output_folder(path: Location, option: str = "--output") -> None:
    """`InputError` when `path`, the folder to write, is a file, or is `-`: elsewhere that means standard output."""
    if path == Path("-"):
        raise InputError("- names no folder, which the output is; give its name, for example --output run")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file and the output is a folder; choose another {option}")
