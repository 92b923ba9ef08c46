# Runs with GNU make 3.81, which macOS ships, and any POSIX shell. Another make stops at what follows, with these words.
$(if $(MAKE_VERSION),,$(error this Makefile needs GNU make 3.81 or newer: run gmake, or install make))
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
PYTHON      ?=
NOTEBOOKS   ?=
# Named, since an open range may take a build that brings several GB of CUDA packages.
TORCH       ?= 2.13.0
# The one that this version's CUDA builds ask for.
TRITON      ?= 3.7.1

python := $(VENV)/bin/python
# Kept inside the environment, so that both go together.
stamp  := $(VENV)/.installed
# Without a Python that runs, or where an installation was cut short, the environment is not what its stamp says.
$(shell { $(python) -c '' && [ ! -e $(VENV)/.pip-unfinished ]; } 2>/dev/null || rm -f $(stamp))

# Another machine, as far as this one can play it, by name: make test-portable MACHINE=avx2.
MACHINE ?= portable
# one thread, older instruction sets, other kernels
portable := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 VECLIB_MAXIMUM_THREADS=1 \
  TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 TF_ENABLE_ONEDNN_OPTS=0 \
  ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=HASWELL \
  NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" XLA_FLAGS=--xla_cpu_max_isa=AVX2
# all cores, without AVX-512
avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=HASWELL MKL_CBWR=COMPATIBLE \
  NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" XLA_FLAGS=--xla_cpu_max_isa=AVX2
# all cores, without AVX, TensorFlow without oneDNN; XLA keeps AVX2, since its float16 needs an instruction of that age
sse := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=NEHALEM MKL_CBWR=COMPATIBLE \
  NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" XLA_FLAGS=--xla_cpu_max_isa=AVX2 TF_ENABLE_ONEDNN_OPTS=0
# this machine's own instructions, one thread
one-thread := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 VECLIB_MAXIMUM_THREADS=1 \
  TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1

.PHONY: help book test check test-portable test-lowest notebooks lab bench constraints mutants clean
.DEFAULT_GOAL := help

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

book: $(stamp) ## Build the book and print where to open it
	@# Sphinx warns of a page when it reads it: forget what was read, or the next run would pass.
	@$(VENV)/bin/jupyter-book build . -W -n --keep-going -q || { rm -rf _build/.doctrees; exit 1; }

test: $(stamp) ## Run every check: ruff, mypy, doctest, pytest, notebooks, and the built pages in a browser
	@$(python) tools/check.py

check: $(stamp) ## Run what daily work needs: ruff, mypy, doctest, and the contract in NumPy and PyTorch
	@$(python) tools/check.py lint format types doctest core

test-portable: $(stamp) ## Run the notebooks as another machine would (MACHINE=avx2, sse or one-thread for others)
	@$(if $($(MACHINE)),,$(error MACHINE=$(MACHINE) is none of portable, avx2, sse, one-thread))
	@$($(MACHINE)) $(python) tools/check.py notebooks

test-lowest: $(stamp) ## Run pytest with the lowest versions that pyproject.toml allows, in .venv-lowest
	@$(python) tools/lowest.py > .venv-lowest.txt
	@$(MAKE) --no-print-directory VENV=.venv-lowest CONSTRAINTS=.venv-lowest.txt .venv-lowest/.installed
	@# Old packages call newer ones in deprecated ways, in the processes that tests start, too. Left out is what holds for the
	@# usual versions alone: the pins, the notebooks, Triton's compilers, and its clash with TensorFlow.
	@PYTEST_ADDOPTS="-W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning" \
	  .venv-lowest/bin/python -m pytest -q -n 2 tests --ignore=tests/site --ignore=tests/test_packaging.py --ignore=tests/test_notebooks.py \
	  --ignore=tests/test_kernel_matrix.py --ignore=tests/test_triton_beside_tensorflow.py

notebooks: $(stamp) ## Execute the notebooks again, in place (NOTEBOOKS=book/x.ipynb for one)
	@$(python) tools/notebooks.py $(NOTEBOOKS)

lab: $(stamp) ## Open JupyterLab on the book
	@$(python) -m jupyterlab book

bench: $(stamp) ## Measure gradclip beside the frameworks on this machine's CPU
	@$(python) -m benchmarks cpu

constraints: ## Pin the newest versions that go together, in constraints.txt
	@rm -rf .venv-fresh
	@printf '%s\n' "torch==$(TORCH)" "triton==$(TRITON)" > .venv-fresh.txt
	@$(MAKE) --no-print-directory VENV=.venv-fresh CONSTRAINTS=.venv-fresh.txt .venv-fresh/.installed
	@{ grep '^#' constraints.txt; .venv-fresh/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | sed 's/+.*//' | tr A-Z_ a-z- | LC_ALL=C sort; } > .venv-fresh.txt
	@mv .venv-fresh.txt constraints.txt

mutants: $(stamp) ## List the ways of breaking the core that no test notices (about half an hour)
	@$(python) tools/mutants.py

clean: ## Remove the environment and everything built
	rm -rf .venv .venv-* _build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .jax_cache

$(stamp): pyproject.toml $(CONSTRAINTS) tools/environment.sh
	@sh tools/environment.sh "$(VENV)" "$(CONSTRAINTS)" "$(PYTHON)"
	@touch $@
