"""The gate for code quality without a GPU: every kernel is compiled ahead of time for every architecture.

`python -m v32.kernels.aot` reads the machine code, prints the table and fails on a spill, a missing matrix instruction,
a kernel that compiled to a trap, or more memory than a program may have.
"""
