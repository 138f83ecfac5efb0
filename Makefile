# Each target sets up what it needs, from nothing but python3 and a C++20 compiler, in $(VENV).
#
#   make test VENV=/path/env                 another virtual environment; a torch found there is kept
#   make test PYTHON=/path/python VENV=      that interpreter's own environment, no virtual environment made
#   make test TEST_PROCESSES=8               more of them side by side than two
#
#   make test-gpu PYTHON=python3 VENV=       nothing is installed: it needs no network
#   make test-gpu OUT=folder MAMBA_SDIST=archive      where results go; mamba-ssm's sdist, to compile and compare with
#
# torch is pinned by constraints.txt where none is installed yet. MAX_JOBS, NVCC_THREADS, TORCH_CUDA_ARCH_LIST,
# CUDA_HOME, FORCE_CUDA and SSMVDM_SKIP_CUDA_BUILD reach the extension build. SSMVDM_COMMIT names the commit in results
# where a copy of the tree has no git.

PYTHON ?= python3
VENV ?= .venv

ifeq ($(strip $(VENV)),)
ENV_PYTHON := $(PYTHON)
STAMPS := build/stamps$(subst /,-,$(shell $(PYTHON) -c 'import sys; print(sys.prefix)'))
else
ENV_PYTHON := $(VENV)/bin/python
STAMPS := $(VENV)/.ssmvdm
endif

PIP := $(ENV_PYTHON) -m pip --disable-pip-version-check
NATIVE_SOURCES := $(shell find csrc -type f)

.PHONY: help bench bench-full bench-micro readme demo test test-cuda-offline test-sanitized test-triton test-integration
.PHONY: test-survival mutants sass cuda-resources triton-resources build lint clean coverage missing
.NOTPARALLEL:

help:
	@echo "make bench   the scan, temporal layers, networks, under six minutes on two cores -> benchmarks/results/<device>/quick/"
	@echo "make bench-full   the same at length, under 40 minutes -> benchmarks/results/<device>/"
	@echo "make bench-micro   single calls, with pytest-benchmark"
	@echo "make demo    train a small network on maze walks, sample, show: under five minutes on two cores -> demo/"
	@echo "make test    the test suite"
	@echo "make coverage   the same, with the lines that no test ran; fails below 95 %"
	@echo "make test-cuda-offline   the CUDA kernels under checkers on the CPU, and compiled for each architecture"
	@echo "make test-sanitized   the C++ kernels under sanitizers: memory, undefined behaviour, threads"
	@echo "make mutants   planted bugs, each of which the suite has to see -> tests/mutants/table.md"
	@echo "make test-triton   Triton kernels: every interpreted case, every architecture compiled"
	@echo "make test-integration   the tests against other packages, the long ones too, and the documentation"
	@echo "make test-survival   training killed at 500 random instants and resumed, to the bit"
	@echo "make test-gpu    on a GPU: build for it, all cases on it, compute-sanitizer, the benchmark; under ten minutes"
	@echo "make bench-gpu   all benchmarks on a GPU, at length -> benchmarks/results/"
	@echo "make build   the package, installed editable with what development needs"
	@echo "make sass    what the CUDA scan's loops cost, from machine code -> csrc/cuda/sass.md"
	@echo "make cuda-resources   registers and spills of the CUDA kernels -> csrc/cuda/resources.md"
	@echo "make triton-resources   the same of the Triton kernels, and their time loops' cost -> tests/triton/resources.md"
	@echo "make readme  the numbers in README.md, from the result files"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove build outputs and caches; the environment stays"

bench: build
	$(ENV_PYTHON) -m ssmvdm.cli bench all

bench-full: build
	$(ENV_PYTHON) -m ssmvdm.cli bench all --full

bench-micro: build
	$(ENV_PYTHON) -m pytest -q --benchmark-only benchmarks/micro.py

readme: $(STAMPS)/requirements
	$(ENV_PYTHON) -m benchmarks.report.readme

demo: build
	$(ENV_PYTHON) -m ssmvdm.cli demo

# Processes that share the tests, each on one thread but where a test asks for more.
TEST_PROCESSES ?= 2
TESTS := pytest -q -n $(TEST_PROCESSES) --dist worksteal tests

test: build
	OMP_NUM_THREADS=1 MPLBACKEND=Agg HF_HUB_OFFLINE=1 $(ENV_PYTHON) -m $(TESTS)

coverage: build
	$(ENV_PYTHON) -m coverage erase
	OMP_NUM_THREADS=1 MPLBACKEND=Agg HF_HUB_OFFLINE=1 $(ENV_PYTHON) -m coverage run -m $(TESTS)
	$(ENV_PYTHON) -m coverage combine -q
	$(ENV_PYTHON) -m coverage report

test-cuda-offline: build
	$(ENV_PYTHON) -m pytest -q -m slow tests/cuda_on_cpu

test-sanitized: build
	$(ENV_PYTHON) -m pytest -q -m slow tests/kernels/test_sanitized.py

mutants: build
	$(ENV_PYTHON) -m tests.mutants

sass cuda-resources: $(STAMPS)/requirements
	$(ENV_PYTHON) -m tests.cuda_on_cpu.$(@:cuda-%=%)

triton-resources: $(STAMPS)/requirements
	$(ENV_PYTHON) -m tests.triton.table

test-triton: build
	$(ENV_PYTHON) -m pytest -q -m "slow or not slow" tests/triton

test-integration: build $(STAMPS)/integration
	HF_HUB_OFFLINE=1 $(ENV_PYTHON) -m pytest -q -m "slow or not slow" tests/integration tests/docs

test-survival: build
	$(ENV_PYTHON) -m pytest -q -m slow tests/training/test_killed.py

# An environment that is not ours is taken as it is; what is built is a stage of the command.
GPU_READY := $(if $(strip $(VENV)),$(STAMPS)/requirements)
GPU_OUT := $(if $(OUT),--out $(OUT))

test-gpu: $(GPU_READY)
	MPLBACKEND=Agg HF_HUB_OFFLINE=1 $(ENV_PYTHON) -m tests.gpu $(GPU_OUT)

bench-gpu: $(GPU_READY)
	$(ENV_PYTHON) -m tests.gpu build
	-$(ENV_PYTHON) -m tests.gpu rival
	$(ENV_PYTHON) -m tests.gpu.benchmark --mamba build/test-gpu/mamba $(GPU_OUT) $(if $(RESUME),--resume)

build: $(STAMPS)/built

lint: $(STAMPS)/requirements
	$(ENV_PYTHON) -m ruff check .
	$(ENV_PYTHON) -m mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	rm -f ssmvdm_kernels/_C*.so $(STAMPS)/built
	find ssmvdm ssmvdm_kernels benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq ($(strip $(VENV)),)
$(ENV_PYTHON):
	$(PYTHON) -m venv $(VENV)
endif

# A torch that is already there is pinned to what it is, so that nothing below can replace it.
$(STAMPS)/requirements: pyproject.toml constraints.txt | $(if $(strip $(VENV)),$(ENV_PYTHON))
	@$(ENV_PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python >= 3.10 is needed")'
	@mkdir -p $(@D)
	@$(ENV_PYTHON) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
		> $(@D)/constraints.txt 2> /dev/null || cp constraints.txt $(@D)/constraints.txt
	$(PIP) install -q -c $(@D)/constraints.txt torch "setuptools>=64" wheel
	SSMVDM_PURE_PYTHON=1 $(PIP) install -q -c $(@D)/constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

$(STAMPS)/integration: $(STAMPS)/requirements
	SSMVDM_PURE_PYTHON=1 $(PIP) install -q -c $(@D)/constraints.txt --no-build-isolation -e ".[test-integration,docs]"
	$(PIP) install -q -c $(@D)/constraints.txt --no-deps video-diffusion-pytorch
	@touch $@

# The editable install above finds whatever this leaves in the source tree, and here the compiler's output is shown.
$(STAMPS)/built: $(STAMPS)/requirements setup.py $(NATIVE_SOURCES) $(if $(wildcard ssmvdm_kernels/_C.*),,missing)
	$(ENV_PYTHON) setup.py -q build_ext --inplace
	@ls ssmvdm_kernels/_C.* > /dev/null 2>&1 || { echo "the C++ extension was not built: see above"; exit 1; }
	@touch $@
