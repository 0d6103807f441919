# Each target does its own set-up and does nothing the second time. `make` alone lists them.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := uv==0.13.9

# A stamp carries the content of what it stands for, so that git's file times do not matter.
key = $(shell cat $(1) 2>/dev/null | cksum | tr ' ' '-')
MADE := $(VENV)/.made
TORCH_DONE := $(VENV)/.torch-$(call key,requirements/torch.txt)
LOCK_DONE := $(VENV)/.lock-$(call key,requirements/build.txt requirements/lock.txt)
SELF_DONE := $(VENV)/.self-$(call key,pyproject.toml)

.PHONY: help setup demo serve test check browser scale bench bench-gateway bench-feedback bench-distill clean lock

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  ARGS=…         goes to the command: make demo ARGS=--no-serve, make test ARGS='-k lease'"
	@echo "  PYTHON=…       the Python to set up with (3.11 or newer)"
	@echo "  TORCH_INDEX=…  the package index to take PyTorch from, such as its CPU-only one"

setup: $(SELF_DONE) ## Make .venv with everything in it, as locked

demo: setup ## See the whole loop: a real model answers, is corrected, learns, ships
	@if [ -z "$$EVERSWARM_HOME" ] && ! grep -qsE '^(export )?EVERSWARM_HOME=|^home *=' .env everswarm.toml; then \
		export EVERSWARM_HOME="$(CURDIR)/var/demo"; \
	fi; \
	export HF_HUB_OFFLINE="$${HF_HUB_OFFLINE-1}"; \
	exec $(BIN)/everswarm demo $(ARGS)

serve: setup ## Start the server
	@exec $(BIN)/everswarm serve $(ARGS)

test: setup ## Run the tests
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

check: setup ## Lint, format, types, import contracts
	@echo "ruff check" && $(BIN)/ruff check .
	@echo "ruff format --check" && $(BIN)/ruff format --check .
	@echo "mypy --strict" && $(BIN)/mypy
	@echo "lint-imports" && $(BIN)/lint-imports

browser: ## Install Chromium for the browser tests (Debian/Ubuntu, needs root)
	@for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do \
		if command -v $$name >/dev/null; then exit 0; fi; \
	done; \
	echo "Installing Chromium (0.1 GB) …"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null || { \
		echo "Chromium could not be installed with apt-get as $$(id -un). Install Chromium or Google Chrome in another way;" >&2; \
		echo "the browser tests take any chromium, chromium-browser, google-chrome or chrome on PATH." >&2; \
		exit 1; \
	}

scale: setup ## Install Ray for curation beyond one machine, and for its test (0.1 GB)
	@$(PIP) install -q --no-deps --require-hashes -r requirements/scale.txt

bench: setup ## Measure speed, memory and sizes
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS)

bench-gateway: setup ## Measure what the gateway costs; ARGS=--litellm compares with LiteLLM (0.6 GB, once)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks gateway $(ARGS)

bench-feedback: setup ## Measure what feedback costs to take and to curate, to a million records (12 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks feedback $(ARGS)

bench-distill: setup ## Measure what distillation costs beside TRL; ARGS='--feedback FILE' also what it teaches (3 hours)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks distill $(ARGS)

clean: ## Remove .venv, var (the demo's state) and caches; models fetched for this user stay
	@echo "Removing .venv, var, dist and the caches of mypy, pytest, ruff, hypothesis and Python."
	@rm -rf $(VENV) var dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

lock: $(MADE) ## Resolve requirements/*.txt again from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(PIP) install -q $(UV)
	@echo "Resolving for every system and Python 3.11 or newer …"
	@$(BIN)/uv pip compile pyproject.toml requirements/build.in requirements/torch-needs.in \
		$(addprefix --extra ,$(LOCKED_EXTRAS)) --group dev --override requirements/no-torch.txt \
		$(LOCK_OPTIONS) $(ARGS) --output-file requirements/lock.txt
	@$(BIN)/uv pip compile requirements/build.in --constraint requirements/lock.txt \
		$(LOCK_OPTIONS) --output-file requirements/build.txt
	@$(BIN)/uv pip compile pyproject.toml --extra scale --constraint requirements/lock.txt \
		$(LOCK_OPTIONS) --output-file requirements/scale.txt
	@echo "Written. \`make setup\` installs it; say in CHANGELOG.md what a user will notice."

# Not those that few need and that bring hundreds of megabytes: presidio, scale (`make scale`).
LOCKED_EXTRAS := device engine otel postgres server training
LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command 'make lock'

$(MADE):
	@wanted="3.11 or newer"; limit=99; names="$(PYTHON)"; \
	if [ -z "$$names" ]; then \
		wanted="3.11 to 3.13"; limit=13; names="python3.13 python3.12 python3.11 python3 python"; \
	fi; \
	found=; for name in $$names; do \
		if "$$name" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$limit))" 2>/dev/null; then \
			found=$$name; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "everswarm needs Python $$wanted; tried: $$names. Install one, or name it: make setup PYTHON=python3.12" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version) …"; \
	"$$found" -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "Python's venv module does not work here; on Debian and Ubuntu install the package python3-venv." >&2; \
		exit 1; \
	}
	@touch $@

$(TORCH_DONE): | $(MADE)
	@if [ "$$(uname -s)" = Linux ] && [ -z "$(TORCH_INDEX)" ] && ! nvidia-smi >/dev/null 2>&1; then \
		echo "No NVIDIA GPU seen: TORCH_INDEX=… with PyTorch's CPU index saves gigabytes of CUDA libraries (see README.md)."; \
	fi
	@echo "Installing $$(grep '^torch==' requirements/torch.txt) (0.2 to 3 GB; about a minute or more) …"
	@$(PIP) install -q --constraint requirements/torch.txt $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') torch
	@rm -f $(VENV)/.torch-* && touch $@

$(LOCK_DONE): $(TORCH_DONE)
	@echo "Installing $$(grep -c '^[a-z]' requirements/lock.txt) locked packages (0.4 GB; about a minute) …"
	@$(PIP) install -q --no-deps --require-hashes -r requirements/build.txt
	@$(PIP) install -q --no-deps --require-hashes --no-build-isolation --use-pep517 -r requirements/lock.txt
	@rm -f $(VENV)/.lock-* && touch $@

$(SELF_DONE): $(LOCK_DONE)
	@echo "Installing everswarm itself …"
	@$(PIP) install -q --no-deps --no-build-isolation --editable .
	@$(BIN)/python requirements/verify.py requirements/lock.txt
	@$(PIP) check
	@rm -f $(VENV)/.self-* && touch $@
	@echo "Ready. Next: make demo"
