# make demo · test · check · fix · bench · clean. Each makes .venv first, where it is missing or out of date.
# Another interpreter: make test PYTHON=python3.12

SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

.PHONY: demo test check fix bench clean chromium

demo: $(STAMP)
	$(PY) -m expunge demo

test: $(STAMP) chromium
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) docs/generate.py --check

fix: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) docs/generate.py

bench: $(STAMP)
	$(PY) -m perf.bench
	$(PY) -m perf.scaling
	$(PY) -m perf.large_models

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist site
	find src tests perf docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last and removed first: an install that was interrupted starts over.
$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "expunge needs Python 3.11 or later, and none was found. Name one: make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi
	@[ -e $@ ] || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	@echo "installing into $(VENV): some minutes the first time" >&2
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The report is tested in Debian's chromium. Where it cannot be installed, those tests skip and say why.
chromium:
	@command -v chromium >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing chromium for the tests of the report" >&2; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
			>/dev/null 2>&1 && exit 0; \
	fi; \
	echo "no chromium: the tests that open the report in a browser will be skipped" >&2
