.PHONY: install check test docs
PYTHON ?= python

install:  ## slimbench as an editable install with what its tests need
	$(PYTHON) -m pip install -e '.[dev]'

check:    ## format, lint, types
	ruff format --check .
	ruff check .
	mypy

test:     ## the default tests (under ten minutes on 2 cores); `make test SLOW=1` runs the slow ones
	$(PYTHON) -m pytest $(if $(SLOW),-m slow,)

docs:     ## run every code block of the docs
	$(PYTHON) -m pytest tests/test_docs.py
