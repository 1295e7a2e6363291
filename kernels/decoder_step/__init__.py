"""All decoder layers for one batch of tokens over the paged KV cache, in one native call.

    ids, positions ─▶ embedding ─▶ layers: norm, projections, cache write, index scores, top-k, sparse attention,
                                           experts ─▶ final norm ─▶ hidden states

What the single operations compute, fused: no tensor is made between them. Weights are read as they lie in memory
(FP8 with block scales, bfloat16, float32), everything else is float32. A row's result is bitwise the same whatever
else is in the batch. There is no fallback here: `library()` says whether it can be used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from v32.kernels.native import NativeExpert, NativeMatrix, library, matrix

NO_MATRIX = NativeMatrix(None, None, 0, 0, 0)
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NativeLayer(ctypes.Structure):
    """`Layer` of cpu.cpp; a dense layer has no router and its block in `shared`."""

    _fields_ = (
        *((name, NativeMatrix) for name in ("q_a", "q_b", "kv_a", "kv_b", "o", "index_q", "index_k", "index_weights")),
        *((name, _POINTER) for name in ("input_norm", "q_a_norm", "kv_a_norm", "post_norm")),
        *((name, _POINTER) for name in ("index_norm_weight", "index_norm_bias")),
        ("router", NativeMatrix),
        ("correction_bias", _POINTER),
        ("experts", _POINTER),
        ("shared", NativeExpert),
    )


class NativeShape(ctypes.Structure):
    """`Shape` of cpu.cpp."""

    _fields_ = (
        *((name, _INT) for name in ("layers", "hidden", "heads", "q_lora", "latent", "nope", "rope", "value")),
        *((name, _INT) for name in ("index_heads", "index_width", "index_topk", "index_interleaved")),
        *((name, _INT) for name in ("experts", "chosen", "groups", "chosen_groups", "normalise")),
        *((name, _FLOAT) for name in ("routed_factor", "eps", "softmax_scale")),
    )


_HOLD = ctypes.CFUNCTYPE(_INT, _INT, ctypes.POINTER(_INT), _INT)


class _Model(ctypes.Structure):
    _fields_ = (
        ("shape", NativeShape),
        ("embedding", NativeMatrix),
        *((name, _POINTER) for name in ("norm", "layers")),
        ("hold", _HOLD),
        ("held", _INT),
    )


class _Cache(ctypes.Structure):
    _fields_ = (("records", _POINTER), ("index_keys", _POINTER))


class _Batch(ctypes.Structure):
    _fields_ = (("count", _INT), *((name, _POINTER) for name in ("ids", "positions", "slots", "cos", "sin")))


class CacheTensors(NamedTuple):
    """The cache of one layer, float32: records [slots, latent + rope], index keys [slots, index_width]."""

    records: Tensor
    index_keys: Tensor


class HeldExperts(Protocol):
    """Experts of which some are in memory at a time."""

    @property
    def num_places(self) -> int:
        """How many that are."""

    def hold(self, layer: int, experts: Sequence[int]) -> None:
        """Set the pointers of these experts of a layer, which stay good until the next call."""


class DecoderStep:
    """A model as the kernel sees it. Whoever makes it keeps all tensors that `layers` point to alive and in place."""

    def __init__(
        self,
        shape: NativeShape,
        embedding: NativeMatrix,
        norm: Tensor,
        layers: Sequence[NativeLayer],
        held: HeldExperts | None = None,
    ) -> None:
        """`held`: asked for the experts that tokens have chosen, if they are not all where `layers` say."""
        self.shape = shape
        self._layers = (NativeLayer * len(layers))(*layers)
        self._norm = norm
        self._held = held
        self._failure: BaseException | None = None
        hold = _HOLD(self._hold) if held else _HOLD()
        self._model = _Model(shape, embedding, norm.data_ptr(), ctypes.addressof(self._layers), hold)
        loaded = library()
        assert loaded is not None, "no native kernels; ask library() first"
        self._call = loaded.v32_decoder_step
        self._caches: ctypes.Array[_Cache] | None = None
        self._key: tuple[int, ...] = ()

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        slots: Sequence[int],
        cos: Tensor,
        sin: Tensor,
        caches: Sequence[CacheTensors],
        threads: int,
    ) -> Tensor:
        """ids, positions int64 [N] -> float32 [N, hidden] after the final norm.

        `slots`: for each row the address of its sequence's int64 slots by position, its own included; cos, sin
        float32 [positions, rope/2]. Records and index keys of the rows are written to their slots.
        """
        hidden = torch.empty(len(ids), self.shape.hidden)
        if self._held is not None:
            self._model.held = self._held.num_places
        addresses = (ctypes.c_void_p * len(slots))(*slots)
        batch = _Batch(
            len(ids),
            ids.data_ptr(),
            positions.data_ptr(),
            ctypes.addressof(addresses),
            cos.data_ptr(),
            sin.data_ptr(),
        )
        self._call(
            ctypes.byref(self._model),
            self._cache_array(caches),
            ctypes.byref(batch),
            _INT(threads),
            ctypes.c_void_p(hidden.data_ptr()),
        )
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return hidden

    def read(self, rows: Tensor) -> None:
        """From now on ids count these rows, float32 [N, hidden], in place of the embedding's."""
        embedding = matrix(rows)
        assert embedding is not None
        self._model.embedding, self._rows = embedding, rows

    def _hold(self, layer: int, experts: ctypes.Array[ctypes.c_int64], count: int) -> int:
        """Called from inside of the step, through which no exception may pass."""
        assert self._held is not None
        try:
            self._held.hold(layer, experts[:count])
        except BaseException as error:
            self._failure = error
            return 1
        return 0

    def _cache_array(self, caches: Sequence[CacheTensors]) -> ctypes.Array[_Cache]:
        key = tuple(tensor.data_ptr() for cache in caches for tensor in cache)
        if self._caches is None or key != self._key:
            pairs = [_Cache(*addresses) for addresses in zip(key[::2], key[1::2])]
            self._caches, self._key = (_Cache * len(pairs))(*pairs), key
        return self._caches


__all__ = [
    "NO_MATRIX",
    "CacheTensors",
    "DecoderStep",
    "HeldExperts",
    "NativeExpert",
    "NativeLayer",
    "NativeShape",
    "matrix",
]
