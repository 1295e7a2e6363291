"""What the Triton kernels of all operations share: GPUs and their limits, FP8 codes, dispatch, the interpreter."""
