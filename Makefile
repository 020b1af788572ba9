# make book   build the book            make test   prove it
# make bench  measure the library       make help   everything else
# Nothing has to be installed beforehand but Python 3.11 or later; a virtual environment is made in .venv.

SHELL := /bin/bash -o pipefail
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
BOOK := _build/html/index.html
# Whatever the built book depends on. jupyter-book itself finds out which pages are stale.
SOURCES := $(shell find lib book chapters figures _ext _assets _templates -type f -not -path '*/__pycache__/*' -not -path '*/.ipynb_checkpoints/*') \
           $(wildcard *.md *.yml *.bib)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## show these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

book: $(BOOK)  ## build the book into _build/html, executing every notebook
	@echo "The book: $(CURDIR)/$(BOOK)"
	@echo "Open it in any browser; it needs no server:  python3 -m webbrowser \"file://$(CURDIR)/$(BOOK)\""

# All pages are written anew, so that none stays behind whose source is gone. A page that is not read again does not
# repeat its warnings, so after a failure all are read anew too. What was executed stays in _build/executed.
$(BOOK): $(INSTALLED) $(SOURCES)
	@echo "Building the book ..."
	@rm -rf _build/html
	@$(BIN)/jupyter-book build . -W -n --keep-going --quiet 2>&1 >/dev/null | { grep -v '^\[IPKernelApp\]' || true; } >&2 \
		|| { rm -rf _build/.doctrees _build/html; echo "The book was not built; the messages above say why."; exit 1; }
	@touch $@

# Debian's Python comes without ensurepip; its pip can still fetch virtualenv.
$(BIN)/python:
	@$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m pip install -qq --break-system-packages virtualenv && $(PYTHON) -m virtualenv -q .venv; }

$(INSTALLED): requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing the pinned packages into .venv (once; one to three minutes) ..."
	@$(BIN)/python -m pip install -qq -r requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

test: $(BOOK)  ## check everything: style, library, notebooks, the built book in a browser
	@$(BIN)/python tests/browser/obtain.py
	@$(BIN)/python -m pytest -n logical --maxprocesses=4 --max-worker-restart=0 --dist loadfile \
		--nbval --nbval-current-env --nbval-cell-timeout=220 tests chapters $(wildcard *.ipynb)

bench: $(INSTALLED)  ## measure the library against the dense layers and against real processes
	@$(BIN)/python tests/bench.py

outputs: $(INSTALLED)  ## execute every chapter in place and store its outputs, ready to be committed
	@$(BIN)/python tests/execute.py

lab: $(INSTALLED)  ## open the chapters live in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=. chapters

# With the oldest Python to be served (PYTHON=...): a newer one may pin what an older one cannot install.
requirements: requirements.in  ## resolve requirements.in anew and pin the result
	@rm -rf _build/resolve && $(PYTHON) -m venv _build/resolve
	@_build/resolve/bin/python -m pip install -qq -r requirements.in
	@_build/resolve/bin/python -m pip freeze --all | grep -v '^pip==' | sed 's/^\(torch==[0-9.]*\)+cpu$$/\1/' > requirements.txt
	@rm -rf _build/resolve

clean:  ## remove what was built (not .venv)
	rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info

.PHONY: help book test bench outputs lab requirements clean
