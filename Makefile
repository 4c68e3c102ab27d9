# Everything that a fresh machine needs is Python 3.11 or newer with pip and venv, git and make.
# `make run` and `make test` each work as the first command; the others say what they do in `make help`.

PYTHON ?= python3
VENV ?= .venv
PRESET ?= default
JOBS ?= 2
ARGS ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STUDIES := $(patsubst conf/studies/%.yaml,%,$(wildcard conf/studies/*.yaml))
UV_PIN = $(shell sed -n 's/^uv==\([^ ;]*\).*/\1/p' constraints.txt)

# Nothing that this project starts reports home.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
# Large pages for the arrays of JAX, for tests and JupyterLab too (dsv3lab/workbook/process.py says why).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help setup same-python run study test test-slow lint format lab ui doctor verify constraints clean clean-all

help: ## list the commands
	@echo "make COMMAND [PYTHON=python3.12] [VENV=.venv] [PRESET=default|long|ci] [ARGS='...']"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

run: $(STAMP) same-python ## all four phases (PRESET=long: 37 times the training; ARGS: Hydra overrides)
	@$(PY) pipelines/all.py profile=$(PRESET) $(ARGS); status=$$?; \
	if [ $$status -ne 0 ]; then echo "make run: pipelines/all.py ended with exit status $$status (make itself exits 2)" >&2; fi; \
	exit $$status

study: $(STAMP) same-python ## the studies of many trainings, an hour or more, resumable (ARGS: names instead of all, --plan, --save)
	@$(PY) -m dsv3lab study $(if $(filter $(STUDIES),$(ARGS)),,all) $(ARGS)

test: $(STAMP) same-python lint ## lint, types, then the tests, with the lines they cover (ARGS: pytest arguments)
	@$(PY) -m pytest -n $(JOBS) --dist loadfile $(if $(ARGS),$(ARGS),--cov --cov-report=term)

test-slow: $(STAMP) same-python ## the tests that take minutes
	@$(PY) -m pytest -m slow $(ARGS)

lint: $(STAMP) ## ruff, the type checker, and no outputs in notebooks
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/basedpyright --pythonpath $(PY)
	@git ls-files -z '*.ipynb' | xargs -0 -r $(VENV)/bin/nbstripout --verify

format: $(STAMP) ## rewrite sources and notebooks in the project's form
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@git ls-files -z '*.ipynb' | xargs -0 -r $(VENV)/bin/nbstripout

lab: $(STAMP) same-python ## JupyterLab on the loopback address
	@$(PY) -m jupyterlab --ip=127.0.0.1 --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

ui: $(STAMP) same-python ## the MLflow UI on the loopback address
	@$(PY) -m dsv3lab ui $(ARGS)

doctor: $(STAMP) same-python ## what this machine lacks, and the command that mends it
	@$(PY) -m dsv3lab doctor $(ARGS)

verify: $(STAMP) same-python ## recompute every record and the chain of promotions
	@$(PY) -m dsv3lab verify $(ARGS)

setup: $(STAMP) same-python ## create .venv and install the pinned requirements

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "dsv3lab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(PY) || { echo "Creating $(VENV) with $$($(PYTHON) --version 2>&1)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned requirements into $(VENV), once (half a minute with uv, a few minutes with pip)"
	@if command -v uv >/dev/null 2>&1; then uv=uv; \
	elif $(PY) -m pip install -q --disable-pip-version-check uv==$(UV_PIN) 2>/dev/null; then uv="$(PY) -m uv"; \
	else uv=false; fi; \
	$$uv pip install -q --python $(PY) -c constraints.txt -e '.[dev]' || { \
	echo "uv did not manage; installing with pip"; \
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; }
	@touch $@

# The interpreter that PYTHON names counts when .venv is made; afterwards .venv is used, and this says so.
same-python: $(STAMP)
ifeq ($(origin PYTHON),command line)
	@asked=$$($(PYTHON) -c 'import platform; print(platform.python_version())') && made=$$(sed -n 's/^version *= *//p' $(VENV)/pyvenv.cfg) && \
	test "$$asked" = "$$made" || { echo "$(VENV) was made with Python $$made, but PYTHON=$(PYTHON) is $$asked. Use another folder (make VENV=.venv-$$asked PYTHON=$(PYTHON) $(MAKECMDGOALS)) or remove this one (make clean-all)." >&2; exit 1; }
endif

constraints: $(STAMP) ## pin the newest versions that pyproject.toml allows, for 3.11 and for 3.12 and newer at once
	@{ echo "# Made by 'make constraints': one pin for each package, Python side and platform."; \
	$(PY) -m uv pip compile --universal --python-version 3.11 --all-extras --no-header --no-annotate --quiet --upgrade pyproject.toml; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove caches and build output (never runs/)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .cache
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

clean-all: clean ## also remove .venv
	@rm -rf $(VENV)
