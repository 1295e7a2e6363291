"""The tensors of a safetensors folder: a folder enters, a table and lazily mapped tensors leave.

Only headers are read until a tensor is asked for. What the tensors mean to a model is not known here.

    file   | 8 bytes: n | n bytes: JSON header | data ...                     |
    header | {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch

from v32.model_runtime.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000
_SAMPLE_BYTES, _SAMPLED_TENSORS = 4096, 4096
_HASHED_WHOLE = 64 * 2**20


class TensorInfo(NamedTuple):
    """Where one tensor lies: bytes [start, stop) of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


class CheckpointIndex(Mapping[str, TensorInfo]):
    """Name -> `TensorInfo` of every tensor in a folder, and `read` for the tensor itself."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
        self.folder = folder
        self._tensors = dict(tensors)
        self._maps: dict[Path, mmap.mmap] = {}
        self._files: dict[Path, FileIO] = {}

    @classmethod
    def from_dir(cls, folder: str | Path) -> CheckpointIndex:
        """Read the headers of all shards; raises `CheckpointError` where one is missing, cut off or damaged."""
        folder = Path(folder)
        weight_map = _read_weight_map(folder)
        files = _shards(folder, weight_map)
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for info in _read_header(file):
                if (other := tensors.get(info.name)) is not None:
                    raise CheckpointError(
                        f"{info.name} is in {other.file.name} and in {file.name}: remove the file that is left over"
                    )
                tensors[info.name] = info
        _check_weight_map(weight_map, tensors)
        return cls(folder, tensors)

    def __getitem__(self, name: str) -> TensorInfo:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.values())

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, dtypes, shapes and values; how the tensors are spread over files does not enter.

        Up to 64 MiB every byte counts. Above, the first and last 4 KiB of at most 4,096 tensors stand for all, so that
        700 GB take moments.
        """
        digest = hashlib.sha256()
        names = sorted(self)
        for name in names:
            digest.update(f"{name} {self[name].dtype} {self[name].shape}\n".encode())
        whole = self.num_bytes <= _HASHED_WHOLE
        for name in names if whole else names[:: -(-len(names) // _SAMPLED_TENSORS)]:
            size = self[name].num_bytes
            for start, stop in [(0, size)] if whole else [(0, _SAMPLE_BYTES), (max(size - _SAMPLE_BYTES, 0), size)]:
                digest.update(self._bytes(self[name], start, min(stop, size)))
        return digest.hexdigest()

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from its file: pages come from disk when touched, writes stay in memory."""
        info = self[name]
        if info.num_bytes == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        count = math.prod(info.shape)
        mapped = torch.frombuffer(self._map(info.file), dtype=info.dtype, count=count, offset=info.start)
        tensor = mapped.view(info.shape)
        # Vectorised code may assume natural alignment; published files have it, hand-written ones may not.
        return tensor if info.start % info.dtype.itemsize == 0 else tensor.clone()

    def read_part(self, name: str, rows: slice, columns: slice | None = None) -> torch.Tensor:
        """A copy of these rows and columns; no other bytes are read. `columns`: of a matrix, all unless given."""
        info = self[name]
        width = math.prod(info.shape[1:])
        columns = columns or slice(0, width)
        shape = (rows.stop - rows.start, *((columns.stop - columns.start,) if len(info.shape) > 1 else ()))
        part = torch.empty(shape, dtype=info.dtype)
        if part.numel() == 0:
            return part
        size, row_bytes = info.dtype.itemsize, width * info.dtype.itemsize
        first = info.start + rows.start * row_bytes + columns.start * size
        # Whole rows lie beside each other: one piece of the file.
        num_pieces = 1 if columns == slice(0, width) else shape[0]
        data = memoryview(part.view(torch.uint8).flatten().numpy().data)
        piece = len(data) // num_pieces
        for index in range(num_pieces):
            self._read(info, first + index * row_bytes, data[index * piece : (index + 1) * piece])
        return part

    def read_into(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Fill a contiguous tensor of the same dtype and shape; nothing is mapped. Threads may do this side by side."""
        info = self[name]
        assert (tensor.dtype, tuple(tensor.shape)) == (info.dtype, info.shape)
        if tensor.numel():
            self._read(info, info.start, memoryview(tensor.view(torch.uint8).flatten().numpy().data))
        return tensor

    def release(self, name: str) -> None:
        """Let go of the memory that a tensor's bytes took while they were read; they can be read again."""
        info = self[name]
        start, stop = -(-info.start // mmap.PAGESIZE) * mmap.PAGESIZE, info.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map(info.file).madvise(mmap.MADV_DONTNEED, start, stop - start)

    def _bytes(self, info: TensorInfo, start: int, stop: int) -> bytearray:
        data = bytearray(stop - start)
        self._read(info, info.start + start, memoryview(data))
        return data

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]

    def _read(self, info: TensorInfo, position: int, data: memoryview) -> None:
        """Bytes of a tensor from a position in its file, which stays open."""
        if info.file not in self._files:
            self._files[info.file] = FileIO(info.file)
        while data:
            count = os.preadv(self._files[info.file].fileno(), [data], position)
            if not count:
                raise CheckpointError(f"{info.file} has become shorter while {info.name} was read; download it again")
            data, position = data[count:], position + count


def _read_weight_map(folder: Path) -> dict[str, str] | None:
    """`weight_map` of the index file: tensor name -> file name; None where there is no index file."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a folder in Hugging Face layout")
    file = folder / INDEX_FILE
    if not file.exists():
        return None
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(shard, str) for shard in weight_map.values()):
            return weight_map
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CheckpointError(f"{file} is not a safetensors index (an object with 'weight_map'); download it again")


def _shards(folder: Path, weight_map: Mapping[str, str] | None) -> list[Path]:
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise CheckpointError(f"{INDEX_FILE} points outside its folder: {outside[0]}; shards must lie beside it")
    elif (folder / SINGLE_FILE).exists():
        names = [SINGLE_FILE]
    else:
        names = _numbered_shards(folder)
    if missing := [name for name in names if not (folder / name).exists()]:
        raise CheckpointError(f"{folder} lacks {some_of(missing)}; download the missing files into it")
    return [folder / name for name in names]


def _numbered_shards(folder: Path) -> list[str]:
    """Shards without an index: `model-00001-of-00163.safetensors` says how many there must be."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if not found:
        other = any(folder.glob("*.bin")) or any(folder.glob("*.gguf"))
        remedy = "convert it to safetensors" if other else f"it needs {SINGLE_FILE}, or shards with {INDEX_FILE}"
        raise CheckpointError(f"{folder} holds no safetensors file; {remedy}")
    match = re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.safetensors", found[0])
    if match is None:
        return found
    stem, width, total = match[1], len(match[2]), match[3]
    return [f"{stem}{number:0{width}d}-of-{total}.safetensors" for number in range(1, int(total) + 1)]


def _read_header(file: Path) -> list[TensorInfo]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if prefix.startswith(b"version "):
            raise CheckpointError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
        if size < 8 or 8 + length > size:
            raise CheckpointError(f"{file} is cut off inside its header ({size} bytes); download it again")
        header = _parse_header(file, stream.read(length) if length <= _MAX_HEADER_BYTES else b"")
    header.pop("__metadata__", None)
    infos = [_tensor_info(file, name, entry, 8 + length) for name, entry in header.items()]
    _check_layout(file, infos, 8 + length, size)
    return infos


def _parse_header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has no readable safetensors header; it is damaged or not safetensors")
    return header


def _tensor_info(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        num_bytes = math.prod(shape)
        sound = all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{file}: the header entry of {name} is damaged; download the file again") from None
    if dtype not in _DTYPES:
        raise CheckpointError(f"{file}: {name} has dtype {dtype}; known are {', '.join(_DTYPES)}")
    if not sound or stop - start != num_bytes * _DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"{file}: {name} with shape {list(shape)} and dtype {dtype} cannot fill {stop - start} bytes; "
            "the header is damaged, download the file again"
        )
    return TensorInfo(name, _DTYPES[dtype], shape, file, data + start, data + stop)


def _check_layout(file: Path, infos: list[TensorInfo], data: int, size: int) -> None:
    """The tensors fill the data without gap or overlap, up to the last byte of the file."""
    end = data
    for info in sorted(infos, key=lambda info: (info.start, info.stop)):
        if info.start != end:
            raise CheckpointError(f"{file}: {info.name} overlaps or leaves a gap; the header is damaged")
        end = info.stop
    if end > size:
        cut = [info.name for info in infos if info.stop > size]
        raise CheckpointError(
            f"{file} is cut off: {size} of {end} bytes, without all of {some_of(cut)}; download it again"
        )
    if end < size:
        raise CheckpointError(f"{file} has {size - end} bytes too many after its last tensor; download it again")


def _check_weight_map(weight_map: Mapping[str, str] | None, tensors: Mapping[str, TensorInfo]) -> None:
    for name, shard in (weight_map or {}).items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(
                f"{INDEX_FILE} says that {name} is in {shard}, but it is not; they are of different downloads"
            )


def some_of(names: list[str], limit: int = 5) -> str:
    """`a, b, c and 7 more`: enough to recognise a pattern, short enough for one message."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
