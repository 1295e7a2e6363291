"""The C++ kernels: compiled once by the system's compiler, kept in the user's cache, called through ctypes."""

from v32.kernels.native.library import NativeExpert, NativeMatrix, NativeUnavailable, library, matrix, pointer

__all__ = ["NativeExpert", "NativeMatrix", "NativeUnavailable", "library", "matrix", "pointer"]
