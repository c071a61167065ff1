# `make help` says what there is. Everything is installed into .venv beside this file, and nowhere else.

VENV := .venv
TORCH ?= torch
TEST_ARGS ?=
QUALITY_ARGS ?=

# The first Python 3.11 to 3.13 on the PATH that can make a virtual environment.
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c "$(USABLE)" >/dev/null 2>&1 && { echo $$name; break; }; done)

# Its name holds a hash of what is installed: .venv is made anew when that changes, and not when a linter's rule does.
HASH := $(shell { sed '/^\[tool\.pytest/,$$d' pyproject.toml; cat constraints.txt; echo "$(TORCH)"; } | cksum | cut -d' ' -f1)
STAMP := $(VENV)/installed-$(HASH)
RUN := $(VENV)/bin/python

.PHONY: demo test lint bench install peers oracles bench-peers quality help
.DEFAULT_GOAL := help

demo: $(STAMP)  ## train on synthetic rows and check that their true directions were found
	$(RUN) .ci/demo.py

test: $(STAMP)  ## the whole test suite (TEST_ARGS="-k topk" for a part of it)
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30 $(TEST_ARGS)

lint: $(STAMP)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright

bench: $(STAMP)  ## the benchmarks: ratios to what each of them names
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do name=$$(basename $$script .py); echo "$$name"; $(RUN) -m benchmarks.$$name; done

install: $(STAMP)  ## only .venv

PEERS := dictionary_learning litdata overcomplete sae_bench sae_lens sparsify

peers: $(PEERS:%=.peers/%/installed)  ## other libraries, each in an environment of its own under .peers

oracles: $(STAMP) peers  ## the golden tensors anew from other libraries; our terms, gradients and formats against them
	$(RUN) -m tests.oracles.make_golden
	$(RUN) -m pytest tests/oracles tests/oracles/round_trips.py tests/oracles/scores_of_sae_bench.py $(TEST_ARGS)

bench-peers: $(STAMP) peers  ## our training step and theirs in one run; writes the table of README.md and LOG.md
	$(RUN) -m benchmarks.train_step --peers --write

quality: $(STAMP)  ## every architecture and null model at the same L0; long, goes on where it stopped (QUALITY_ARGS="--seeds 5")
	$(RUN) -m benchmarks.quality $(QUALITY_ARGS)

.peers/%/installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear .peers/$*
	.peers/$*/bin/python -m pip install --quiet -c $< $(TORCH)
	.peers/$*/bin/python -m pip install --quiet --no-deps -r $<
	touch $@

# torch comes first and alone, so that nothing else picks another build of it. The stamp is written last: an installation
# that was broken off starts again.
$(STAMP):
	@$(or $(PYTHON),false) -c "$(USABLE)" 2>/dev/null || { \
	echo "no usable Python: install 3.11, 3.12 or 3.13 with its venv module, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV): a few minutes, once"
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt $(TORCH)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(RUN) -m pip check
	touch $(STAMP)

help:
	@echo "make TARGET"
	@sed -n 's/^\([a-z-]*\):.*  ## /  \1	/p' $(firstword $(MAKEFILE_LIST))
	@echo "TORCH='torch --index-url URL' takes another build of torch; PYTHON=PATH another Python (3.11 to 3.13)."
