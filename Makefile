# Every target works on a fresh clone with make and Python >= 3.11, and again at once when nothing changed.
#   SPECPROXY_TORCH=cpu|cuda   which build of torch to install (default: cuda where nvidia-smi lists a GPU, else cpu)
#   PYTHON=/path/to/python     which Python makes the environment
#   ARGS="..."                 more arguments for serve, bench, test, soak and identity

SHELL := /bin/bash

VENV ?= .venv
BIN := $(VENV)/bin
SPECPROXY_TORCH ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo cuda || echo cpu)
RUN_STAMP := $(VENV)/.installed-$(SPECPROXY_TORCH)
DEV_STAMP := $(VENV)/.installed-dev-$(SPECPROXY_TORCH)
RAY_STAMP := $(VENV)/.installed-ray-$(SPECPROXY_TORCH)

export PYTHONUNBUFFERED := 1
# Ours alone: specproxy takes every SPECPROXY_ variable for a setting.
unexport SPECPROXY_TORCH

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1	/' | expand -t 14

.PHONY: serve
serve: $(RUN_STAMP) ## the proxy on http://127.0.0.1:8000/v1 with the bundled model and policies/
	@exec $(BIN)/specproxy serve --policies policies $(ARGS)

.PHONY: test
test: $(DEV_STAMP) ## every test but those marked slow, soak, gpu, identity_full and ray; nothing may be fetched
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: slow
slow: $(DEV_STAMP) ## the longest tests: whole commands, busy servers, the self-test's reach
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

.PHONY: check
check: $(DEV_STAMP) ## format, lint, strict types; all three run, whatever the first one says
	@status=0; \
	for command in "ruff format --check ." "ruff check ." mypy; do $(BIN)/$$command || status=1; done; \
	exit $$status

.PHONY: identity
identity: $(DEV_STAMP) ## the whole route mix, speculation on against off, token by token
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m identity_full $(ARGS)

.PHONY: soak
soak: $(DEV_STAMP) ## minutes of mixed load with disconnects; memory must stay flat
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak $(ARGS)

.PHONY: ray
ray: $(RAY_STAMP) ## two replicas on a Ray cluster of this machine: text, placing, deaths, one gate
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m ray tests/ray $(ARGS)

.PHONY: bench
bench: $(RUN_STAMP) ## tokens/s, speculation on against off, per category, over HTTP
	@$(BIN)/specproxy bench $(ARGS)

.PHONY: install
install: $(DEV_STAMP) ## the environment, with the tools for development

.PHONY: clean
clean: ## remove the environment, caches and build leftovers
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find specproxy kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_STAMP): pyproject.toml constraints.txt scripts/install
	@scripts/install $(VENV) $(SPECPROXY_TORCH)
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) tests/deploy/requirements.txt
	@scripts/install $(VENV) $(SPECPROXY_TORCH) dev
	@touch $@

$(RAY_STAMP): $(DEV_STAMP)
	@$(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet -c constraints.txt -e '.[ray]'
	@touch $@
