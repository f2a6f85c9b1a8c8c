# Everything sets itself up: a virtual environment in .venv, packages by pip, nothing else.
VENV ?= .venv
FLOWER ?= .venv-flower
PYTHON ?= python3
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: app demo test test-extras test-browser lint docs bench data clean help

help:
	@echo "make app    the demo in the browser"
	@echo "make demo   sample and invert with the shipped model; pictures in outputs/demo/"
	@echo "make test   the test suite"
	@echo "make test-extras  the tests of the extra that does not fit beside the others: federated"
	@echo "make test-browser  the demo in Chromium, which must be installed"
	@echo "make lint   ruff, mypy, import rules"
	@echo "make docs   the documentation as a site, in site/"
	@echo "make bench  measure the tables of docs/results again, into outputs/results (hours)"
	@echo "make data   fetch the data sets that training and benchmarks need"

# torch goes first and exact, so that no other package chooses its version. A CPU build that is wanted instead of
# the index's default must be there already: python3 -m venv .venv, install it, then make.
$(VENV)/.user: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[metrics]'
	@$(PY) -c "import importlib.util as u, sys; sys.exit('torchvision breaks this torch build: pip uninstall torchvision' if u.find_spec('torchvision') else 0)"
	@touch $@

$(VENV)/.app: $(VENV)/.user
	$(PIP) -e '.[metrics,app]'
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	$(PIP) -e '.[metrics,app,recommendation,graphs,causal,rl,eeg,dev]'
	$(PIP) --no-deps aeon  # the series that it carries, not its code
	@touch $@

# What flwr wants in other versions than $(VENV) has lies before them; all else is taken from there. That aeon and
# virtualenv of $(VENV) want other versions, as pip says, does not matter: nothing here uses them.
$(FLOWER)/.ready: $(VENV)/.developer constraints-federated.txt
	test -x $(FLOWER)/bin/python || $(PY) -m venv $(FLOWER)
	$(PY) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(FLOWER)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beneath.pth"
	$(FLOWER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-federated.txt \
		-e '.[federated]'
	@touch $@

$(VENV)/.browser: $(VENV)/.developer
	$(PIP) -e '.[browser]'
	@touch $@

$(VENV)/.docs: $(VENV)/.user
	$(PIP) -e '.[docs]'
	@touch $@

app: $(VENV)/.app
	$(PY) app.py

demo: $(VENV)/.user
	$(PY) -m dmkit demo --out outputs/demo

# Four workers of one thread each for two cores: much of the time a test waits for processes that it started.
test: $(VENV)/.developer
	$(PY) -m pytest -n 4 --dist loadfile $(ARGS)

test-extras: $(FLOWER)/.ready
	$(FLOWER)/bin/python -m pytest tests/auxiliary/test_fedka_flower.py $(ARGS)

# Chromium is the machine's own (Debian: apt-get install chromium); DMKIT_CHROMIUM names another one.
test-browser: $(VENV)/.browser
	$(PY) -m pytest tests/browser $(ARGS)

lint: $(VENV)/.developer
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --strict

data: $(VENV)/.developer
	$(PY) -m dmkit.data.fetch

bench: data
	DMKIT_RESULTS=outputs/results $(PY) benchmarks/run.py

clean:
	rm -rf $(VENV) $(FLOWER) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
