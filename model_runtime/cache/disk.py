"""Pages on disk: what a conversation has computed, to be found again by another process.

    magic │ length of header │ header (JSON) │ token ids, int32 │ layer 0 records, index keys │ layer 1 … │ digest

The header names what the numbers depend on (weights, numerics, encoder, layout); a file of anything else is refused.
The digest covers every byte before it. A file appears whole or not at all, readable by its owner only. Whatever is
wrong with one, the remedy is to compute again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from v32.model_runtime.cache.block_table import BlockTable
from v32.model_runtime.cache.pages import KVLayout, PagePool
from v32.model_runtime.errors import KVFileError

_MAGIC = b"v32-kv\x001\n"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32
_MOST_HEADER = 1 << 16

Identity = Mapping[str, str]
"""What the numbers depend on beside the layout, by name."""


def write_kv(path: str | os.PathLike[str], token_ids: Sequence[int], table: BlockTable, identity: Identity) -> None:
    """Write what `table` holds of `token_ids`; replaces an older file at once. Raises KVFileError, then nothing has
    changed."""
    target = Path(path)
    header = {**_description(table.pool.layout, identity), "num_tokens": table.length}
    try:
        # mkstemp makes files of mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write(file, header, token_ids, table)
            os.replace(temporary, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise KVFileError(
            f"cannot write {target}: {error.strerror or error}; the session will be computed again"
        ) from error


def read_kv(path: str | os.PathLike[str], pool: PagePool, identity: Identity) -> tuple[list[int], BlockTable]:
    """The token ids of a file and a table that holds them. Raises KVFileError with the reason, MemoryError if the pool
    has too few free pages; then no page is taken."""
    source = Path(path)
    try:
        with source.open("rb") as file:
            return _read(file, source, pool, identity)
    except OSError as error:
        raise KVFileError(f"cannot read {source}: {error.strerror or error}") from error


def check_kv(path: str | os.PathLike[str], layout: KVLayout, identity: Identity) -> int:
    """How many positions a file holds, by its header and length; the content is not read. Raises KVFileError."""
    source = Path(path)
    try:
        with source.open("rb") as file:
            return _checked_header(file, source, layout, identity)[0]
    except OSError as error:
        raise KVFileError(f"cannot read {source}: {error.strerror or error}") from error


def _description(layout: KVLayout, identity: Identity) -> dict[str, Any]:
    return {
        **identity,
        "kv_dtype": layout.dtype_name,
        "num_layers": layout.num_layers,
        "kv_lora_rank": layout.kv_lora_rank,
        "qk_rope_head_dim": layout.qk_rope_head_dim,
        "index_head_dim": layout.index_head_dim,
    }


def _write(file: BinaryIO, header: Mapping[str, Any], token_ids: Sequence[int], table: BlockTable) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    encoded = json.dumps(header).encode()
    ids = np.asarray(token_ids[: table.length], "<i4").tobytes()
    for piece in (_MAGIC, _LENGTH.pack(len(encoded)), encoded, ids):
        digest.update(piece)
        file.write(piece)
    slots = table.slots(0, table.length)
    for layer in table.pool.layers:
        for rows in (layer.records, layer.index_keys):
            data = _bytes_of(rows[slots].cpu())
            digest.update(data)
            file.write(data)
    file.write(digest.digest())
    file.flush()
    os.fsync(file.fileno())


def _read(file: BinaryIO, source: Path, pool: PagePool, identity: Identity) -> tuple[list[int], BlockTable]:
    num_tokens, digest = _checked_header(file, source, pool.layout, identity)
    token_ids = np.frombuffer(_take(file, 4 * num_tokens, digest), "<i4").tolist()
    table = BlockTable(pool)
    try:
        table.reserve(num_tokens)
        slots = table.slots(0, num_tokens)
        for layer in pool.layers:
            for rows in (layer.records, layer.index_keys):
                width = rows.shape[1]
                data = _take(file, num_tokens * width * rows.dtype.itemsize, digest)
                values = torch.frombuffer(data, dtype=rows.dtype).view(num_tokens, width)
                rows.index_copy_(0, slots, values.to(rows.device))
        if file.read(_DIGEST_BYTES) != digest.digest():
            raise KVFileError(f"{source} is damaged: its digest is not that of its content")
        table.advance(num_tokens)
    except BaseException:
        table.close()
        raise
    return token_ids, table


def _checked_header(file: BinaryIO, source: Path, layout: KVLayout, identity: Identity) -> tuple[int, Any]:
    """The number of tokens and the digest so far; the file stands behind its header, and its length is right."""
    header, digest = _header(file, source)
    for name, expected in _description(layout, identity).items():
        if header.get(name) != expected:
            raise KVFileError(f"{source} was computed with {name} {header.get(name)!r}, this is {expected!r}")
    num_tokens: int = header["num_tokens"]
    start = file.tell()
    if file.seek(0, os.SEEK_END) - start != num_tokens * (4 + layout.token_bytes) + _DIGEST_BYTES:
        raise KVFileError(f"{source} is damaged: its length is not that of {num_tokens} tokens")
    file.seek(start)
    return num_tokens, digest


def _header(file: BinaryIO, source: Path) -> tuple[dict[str, Any], Any]:
    """The header and the digest so far."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    start = file.read(len(_MAGIC) + _LENGTH.size)
    digest.update(start)
    if not start.startswith(_MAGIC[:6]):
        raise KVFileError(f"{source} is no file of cached keys and values")
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + _LENGTH.size:
        raise KVFileError(f"{source} is damaged, or of another version of v32")
    (length,) = _LENGTH.unpack(start[len(_MAGIC) :])
    encoded = file.read(min(length, _MOST_HEADER))
    digest.update(encoded)
    try:
        header = json.loads(encoded)
        if not (isinstance(header["num_tokens"], int) and header["num_tokens"] > 0):
            raise ValueError("no tokens")
    except (ValueError, KeyError, TypeError) as error:
        raise KVFileError(f"{source} is damaged: its header cannot be read") from error
    return header, digest


def _take(file: BinaryIO, num_bytes: int, digest: Any) -> bytearray:
    data = bytearray(num_bytes)
    file.readinto(data)  # type: ignore[attr-defined]
    digest.update(data)
    return data


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy().data).cast("B")
