# make demo    set everything up and answer a question that takes a search and a computation
# make test    set everything up and run all tests
# make check   formatting, lint, types, import directions, fast tests (130 s of processor time when warm)
#
# TORCH=cuda make demo   takes PyTorch's CUDA build instead of the CPU one (set it at the first call, or after make clean)

PYTHON ?= python3
TORCH ?= cpu
TORCH_VERSION := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

BIN := .venv/bin
# One process a core, one thread a process: small models gain nothing from threads that wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
FOLDERS := agent tools model_runtime kernels sandboxes
SOURCES := $(FOLDERS) v32 examples tests setup.py

# Compiled modules are kept whatever the shell says: without them every run of the tests compiles all of them again.
unexport PYTHONDONTWRITEBYTECODE

DEMO_OPTIONS := --tools search,python --docs examples/tiny_v32/corpus --topn 3 --temperature 0

FAST_TESTS := $(addprefix fast-tests-,model_runtime agent tools kernels sandboxes)

.PHONY: demo test check lint types imports eval setup clean $(FAST_TESTS)

demo: setup
	$(BIN)/v32 run "What is the population of Todix plus 30?" $(DEMO_OPTIONS)

test: setup
	$(PYTEST) --numprocesses auto --maxprocesses 8 --dist worksteal

# The parts side by side, the longest first. A folder's tests load what that folder needs, once.
check: setup
	$(MAKE) --no-print-directory --jobs $$(nproc) --output-sync=target $(FAST_TESTS) types lint imports

lint: setup
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

# mypy does not follow the mapping of setup.py, so it gets the same tree as links.
types: setup
	mkdir -p build/typed/v32
	for folder in $(FOLDERS); do ln -sfn ../../../$$folder build/typed/v32/$$folder; done
	MYPYPATH=build/typed $(BIN)/mypy --cache-dir build/mypy --namespace-packages $(addprefix -p v32.,$(FOLDERS))

imports: setup
	$(BIN)/lint-imports

$(FAST_TESTS): fast-tests-%: setup
	$(PYTEST) -q -m "not slow and not gpu" --hypothesis-profile=quick tests/$*

eval: setup
	$(BIN)/v32 eval tiny

setup: .venv/.ready

.venv/.ready: pyproject.toml setup.py Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "v32 needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; $(MAKE) --no-print-directory .venv-packages && $(PYTHON) -m venv .venv; }
ifeq ($(TORCH),cpu)
	$(PIP) "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || $(PIP) --extra-index-url $(TORCH_CPU_INDEX) "torch==$(TORCH_VERSION)"
else
	$(PIP) "torch==$(TORCH_VERSION)"
endif
	$(PIP) "setuptools>=77" wheel
	$(PIP) --no-build-isolation --editable ".[test,dev,bwrap]"
	touch $@

# Debian and Ubuntu keep venv in a package of its own.
.PHONY: .venv-packages
.venv-packages:
	@echo "python3-venv is missing; installing it with apt-get"
	if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -qy python3-venv; else sudo apt-get update -q && sudo apt-get install -qy python3-venv; fi

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
