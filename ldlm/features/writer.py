"""Writing a feature store: arrays' metadata, statistics, tokenizer, and shards with their records."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldlm import files
from ldlm.config import Shapes
from ldlm.features import decided, shards
from ldlm.features.codecs import Codec, Parts
from ldlm.features.ledger import folder, shard_name
from ldlm.features.shards import CHUNK_ROWS, SPLITS
from ldlm.location import Location

# Level 1: states are all but noise, and higher levels only take longer.
LEVEL = 1
# In blocks this large, the bytes of one place in a number fill the 128 KiB that zstd compresses at a time, for numbers
# of up to 4 bytes. If they shared these with other places, one code would serve all, and nothing would be gained.
BLOSC_BLOCK = 2**19


@dataclass(frozen=True)
class StoreWriter:
    """Writes the shards of an unsealed store at `path`. A shard is done when the ledger has its record.

    Any number of processes may write at once. Two machines that make the same shard may differ in its
    last bits; the files of the process that records them first stay (`decided`).
    """

    path: Location
    shapes: Shapes
    codec: Codec
    compression: str
    shard_rows: int
    with_hidden: bool

    def create(self, rows: Mapping[str, int], mean_D: np.ndarray, std_D: np.ndarray) -> dict[str, str]:
        """Write the arrays' metadata, mean and std; returns the sha256 by file. A second call changes nothing."""
        from zarr.codecs import Crc32cCodec

        vectors = {"mean": mean_D.astype(np.float32), "std": std_D.astype(np.float32)}

        def build(root: Any) -> None:
            for name, vector in vectors.items():
                root.create_array(name, shape=vector.shape, dtype=np.float32, compressors=[Crc32cCodec()])
            for split in SPLITS:
                if rows.get(split):
                    self._create_split(root if split == "train" else root.require_group(split), rows[split])

        made = shards.encoded({name: (0, vector) for name, vector in vectors.items()}, build)
        names = {f"features.zarr/{name}": data for name, data in made.items()}
        return {name: files.sha256(files.write_once(self.path / name, data)) for name, data in names.items()}

    def write_tokenizer(self, tokenizer: Any) -> dict[str, str]:
        """Put the tokenizer into the store; returns the sha256 of its files."""
        with tempfile.TemporaryDirectory() as folder:
            with files.writing(Path(folder)):
                tokenizer.save_pretrained(folder)
            found = files.copy_tree(Path(folder), self.path / "tokenizer")
        return {f"tokenizer/{name}": digest for name, digest in found.items()}

    def _create_split(self, group: Any, rows: int) -> None:
        length, width = self.shapes.seq_len, self.shapes.hidden_dim
        self._create_array(group, "tokens", (rows, length), (CHUNK_ROWS, length), "int32")
        if not self.with_hidden:
            return
        chunks = (CHUNK_ROWS, _even(length, 128), _even(width, 384))
        for name, shape in self.codec.shapes((rows, length, width)).items():
            self._create_array(group, name, shape, chunks[: len(shape)], self.codec.dtypes[name])
        if "hidden" in self.codec.dtypes:
            group["hidden"].attrs["codec"] = self.codec.name
            group["hidden"].attrs["decode"] = self.codec.recipe

    def _create_array(self, group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> None:
        """Create an array with codecs of the Zarr core specification only, so that any v3 reader can read it."""
        from zarr.codecs import Crc32cCodec

        inner = [-(-extent // chunk) * chunk for extent, chunk in zip(shape[1:], chunks[1:], strict=True)]
        group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            shards=(self.shard_rows, *inner),
            dtype=dtype,
            compressors=[*_compressors(self.compression, np.dtype(dtype).itemsize), Crc32cCodec()],
            # Chunks of zeros are written too, so that an absent chunk is always a missing one.
            config={"write_empty_chunks": True},
        )

    def shards(self, rows: int) -> int:
        """Number of shards of `rows` rows."""
        return -(-rows // self.shard_rows)

    def record_path(self, split: str, shard: int) -> Location:
        """The path of a shard's record."""
        return self.path / "ledger" / f"{shard_name(split, shard)}.json"

    def done(self, split: str, shard: int) -> bool:
        """Whether the ledger has the record of a shard."""
        return self.record_path(split, shard).is_file()

    def recorded(self) -> set[tuple[str, int]]:
        """(split, shard) of all records, from one listing."""
        names = (path.stem.rpartition("-") for path in files.matching(self.path / "ledger", "*.json"))
        return {(split, int(shard)) for split, _, shard in names if shard.isdigit()}

    def encoded(self, shard: int, parts: Parts, tokens: np.ndarray) -> dict[str, memoryview]:
        """A shard's files and the arrays' metadata as bytes, by name relative to the folder of the split."""
        start = shard * self.shard_rows
        arrays = {name: (start, rows) for name, rows in {"tokens": tokens, **parts}.items()}
        return shards.encoded(arrays, lambda group: self._create_split(group, start + len(tokens)))

    def write(self, split: str, shard: int, parts: Parts, tokens: np.ndarray, facts: Mapping[str, Any]) -> int:
        """Write a whole shard, durably, and then its record, unless another process is first; returns the bytes made.

        `parts` are the arrays that the codec made. `facts` go into the record: the fingerprints of `encoder` and
        `statistics`, versions, and the codec's error.
        """
        start, path = shard * self.shard_rows, self.record_path(split, shard)
        encoded = self.encoded(shard, parts, tokens)
        made = {folder(split) + name: data for name, data in encoded.items() if not name.endswith("zarr.json")}
        record = {
            "split": split,
            "shard": shard,
            "start": start,
            "rows": len(tokens),
            "codec": self.codec.name,
            **facts,
        }
        decided.put(self.path, made, path, record)
        return sum(map(len, made.values()))


def _compressors(compression: str, itemsize: int) -> list[Any]:
    """The codecs of a compression, for numbers of `itemsize` bytes."""
    from zarr.codecs import BloscCodec, ZstdCodec

    match compression:
        case "blosc":
            return [BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle", typesize=itemsize, blocksize=BLOSC_BLOCK)]
        case "zstd":
            return [ZstdCodec(level=LEVEL)]
    return []


def _even(extent: int, most: int) -> int:
    """The width of equal chunks of up to `most`. A shard holds whole chunks, so unequal ones would waste space."""
    count = -(-extent // most)
    return -(-extent // count)
