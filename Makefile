# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo results test lint torture test-web test-gpu test-compat compat-one bench docs wheel clean
export HF_HUB_OFFLINE := 1

setup: $(STAMP)

# torch first, as one exact version: elsewhere a range would pull gigabytes of CUDA packages onto a CPU machine
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(STAMP)

demo: setup
	$(BIN)/lvlm-radapt demo --out demo-out

# The demo at full strength: the README's table (hours on two cores).
results: setup
	$(BIN)/lvlm-radapt demo --samples 500 --steps 100 --out results

# A test file a process, one thread each.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

torture: setup
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -m 'torture or not (gpu or web)' --timeout 3600

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The web chat in headless Chromium. Gradio and the browser's driver stay out of `make setup`.
test-web: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[web,test-web]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m web tests/web

# What can only be shown on CUDA. It runs in the environment at hand: a GPU machine brings its own torch.
test-gpu:
	$(PYTHON) -m pytest -m gpu

# The oldest supported transformers and the newest one, each in an environment of its own.
test-compat:
	$(MAKE) compat-one ENV=$(VENV)-compat-oldest TRANSFORMERS='transformers==5.17.0'
	$(MAKE) compat-one ENV=$(VENV)-compat-newest TRANSFORMERS='transformers'

compat-one:
	test -x $(ENV)/bin/python || $(PYTHON) -m venv $(ENV)
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(ENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade '$(TRANSFORMERS)' --editable '.[test]'
	OMP_NUM_THREADS=1 $(ENV)/bin/python -m pytest $(SIDE_BY_SIDE)

bench: setup
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/batching.py
	$(BIN)/python benchmarks/attack_speed.py
	$(BIN)/python benchmarks/attack_speed.py --attack ensemble
	$(BIN)/python benchmarks/attack_speed.py --early-exit
	$(BIN)/python benchmarks/attack_speed.py --attack ensemble --early-exit
	$(BIN)/python benchmarks/full_size.py

# The API reference, from the docstrings: open site/index.html.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python docs/api.py site

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) $(VENV)-compat* dist demo-out site
