# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
# The package index that torch comes from, for another build than pip finds: see docs/install.md.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := -m pip --disable-pip-version-check install --quiet --quiet
PIP_LOCKED := $(PIP) --no-deps --require-hashes --only-binary :all: --requirement
PIP_SELF := $(PIP) --no-deps --no-build-isolation --editable .
PIP_TORCH := $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: setup demo results test test-all lint test-web test-gpu test-compat compat-oldest compat-newest lock bench docs wheel clean
export HF_HUB_OFFLINE := 1

setup: $(STAMP)

# Exactly the locked versions and files, with all extras. torch comes after them: it finds what it needs in place.
$(STAMP): pyproject.toml requirements/lock.txt requirements/torch.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_LOCKED) requirements/lock.txt
	$(BIN)/python $(PIP_TORCH) --requirement requirements/torch.txt
	$(BIN)/python $(PIP_SELF)
	touch $(STAMP)

# After a change of requirements in pyproject.toml. What is locked stays, unless UPGRADE=1 asks for the newest.
UV_COMPILE = $(VENV)-lock/bin/uv pip compile --quiet pyproject.toml --all-extras --group build --generate-hashes \
	--only-binary :all: --no-emit-package torch --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

lock:
	test -x $(VENV)-lock/bin/python || $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python $(PIP) uv
	$(UV_COMPILE) --universal --python-version 3.11 --constraint requirements/torch.txt --output-file requirements/lock.txt
	$(UV_COMPILE) --resolution lowest-direct --python-version 3.11 --python-platform linux --output-file requirements/oldest.txt

demo: setup
	$(BIN)/lvlm-radapt demo --out demo-out

# The demo at full strength: the README's table (hours on two cores).
results: setup
	$(BIN)/lvlm-radapt demo --samples 500 --steps 100 --out results

# Processes of one thread each. One that is done takes over tests of another.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

# The slow tests too; HYPOTHESIS_PROFILE=random draws new examples.
test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not gpu and not web' --timeout 1800

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The web chat in headless Chromium.
test-web: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m web tests/web

# What can only be shown on CUDA. It runs in the environment at hand: a GPU machine brings its own torch.
test-gpu:
	$(PYTHON) -m pytest -m gpu

# The oldest versions that pyproject.toml allows (on Python 3.11) and the newest, each in an environment of its own;
# TRANSFORMERS=oldest or newest runs one of both. TORCH=2.13.0 spares the CUDA build that another torch may come as.
test-compat: $(addprefix compat-,$(or $(TRANSFORMERS),oldest newest))

COMPAT = $(VENV)-$@/bin/python
OLDEST_TORCH = $(shell sed -n 's/.*"torch>=\([0-9.]*\).*/\1/p' pyproject.toml)

compat-oldest:
	$(PYTHON) -m venv --clear $(VENV)-$@
	$(COMPAT) $(PIP_LOCKED) requirements/oldest.txt
	$(COMPAT) $(PIP_TORCH) torch==$(or $(TORCH),$(OLDEST_TORCH))
	$(COMPAT) $(PIP_SELF)
	OMP_NUM_THREADS=1 $(COMPAT) -m pytest $(SIDE_BY_SIDE)

compat-newest:
	$(PYTHON) -m venv --clear $(VENV)-$@
	$(COMPAT) $(PIP_TORCH) torch$(if $(TORCH),==$(TORCH))
	$(COMPAT) $(PIP) --editable '.[test,qwen,original,zero-shot,web,test-web]'
	OMP_NUM_THREADS=1 $(COMPAT) -m pytest $(SIDE_BY_SIDE)

bench: setup
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/batching.py
	$(BIN)/python benchmarks/attack_speed.py
	$(BIN)/python benchmarks/attack_speed.py --attack ensemble
	$(BIN)/python benchmarks/attack_speed.py --early-exit
	$(BIN)/python benchmarks/attack_speed.py --attack ensemble --early-exit
	$(BIN)/python benchmarks/full_size.py
	$(BIN)/python benchmarks/flops.py

# One site: guides, commands and the API. Open site/index.html.
docs: setup
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs site

wheel: setup
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) $(VENV)-lock $(VENV)-compat* dist demo-out site
