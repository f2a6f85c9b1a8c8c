# Everything sets itself up: a virtual environment in .venv, packages by pip, nothing else.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench data clean help

help:
	@echo "make demo   sample and invert with the shipped model; pictures in outputs/demo/"
	@echo "make test   the test suite"
	@echo "make lint   ruff, mypy, import rules"
	@echo "make bench  reproduce the measured tables of docs/results (slow)"
	@echo "make data   fetch the data sets that training and benchmarks need"

# torch goes first and pinned: left to itself, pip takes a CUDA build of several gigabytes.
$(VENV)/.user: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[metrics]'
	@$(PY) -c "import importlib.util as u, sys; sys.exit('torchvision breaks this torch build: pip uninstall torchvision' if u.find_spec('torchvision') else 0)"
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	$(PIP) -e '.[metrics,dev]'
	@touch $@

demo: $(VENV)/.user
	$(PY) -m dmkit demo --out outputs/demo

test: $(VENV)/.developer
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.developer
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

data: $(VENV)/.developer
	$(PY) -m dmkit.data.fetch

bench: data
	$(PY) benchmarks/run.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
