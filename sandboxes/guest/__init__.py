"""The programs that run inside the sandbox: plain Python 3.8+, standard library only; the host imports `wire` alone."""
