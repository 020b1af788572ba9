# make book   build the book            make test   prove it
# make bench  measure the library       make help   everything else
# Nothing has to be installed beforehand but Python 3.11 or later; a virtual environment is made in .venv.

SHELL := /bin/bash -o pipefail
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
BOOK := _build/html/index.html
BUILT := _build/built
# Whatever the built book depends on. book/build/pages.py finds out which chapters and pages are stale.
SOURCES := $(shell find lib book chapters figures _ext _assets _templates -type f -not -path '*/__pycache__/*' -not -path '*/.ipynb_checkpoints/*' 2>/dev/null) \
           $(wildcard *.md *.ipynb *.yml *.bib)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## show these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

book: $(BUILT)  ## build the book into _build/html, executing only chapters whose stored outputs are stale
	@echo "The book: $(CURDIR)/$(BOOK)"
	@echo "Open it in any browser; it needs no server:  python3 -m webbrowser \"file://$(CURDIR)/$(BOOK)\""

$(BUILT): $(INSTALLED) $(SOURCES) $(if $(wildcard $(BOOK)),,no-pages)
	@rm -f $@
	@$(BIN)/python -m book.build.pages
	@touch $@

no-pages:

# Debian's Python comes without ensurepip; its pip can still fetch virtualenv.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m pip install -qq --break-system-packages virtualenv && $(PYTHON) -m virtualenv -q .venv; }

$(INSTALLED): requirements.txt pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo ".venv is half made (an interruption?); making it anew."; \
		rm -rf .venv; $(MAKE) --no-print-directory $(BIN)/python; }
	@$(BIN)/python -m book.build.install
	@touch $@

# Without bytecode, every process would take the asserts of all tests apart again: about six seconds each.
test: export PYTHONDONTWRITEBYTECODE =
test: $(BUILT)  ## check everything: style, library, notebooks, the built book in a browser
	@$(BIN)/python tests/browser/obtain.py
	@$(BIN)/python -m pytest -p book.build.order -p book.build.slowest -p book.build.kernels \
		-n logical --maxprocesses=4 --max-worker-restart=0 --nbval --nbval-current-env --nbval-cell-timeout=220 tests chapters $(wildcard *.ipynb)

check: export PYTHONDONTWRITEBYTECODE =
check: $(BUILT)  ## CHAPTER=name: the tests of one idea, in a minute: its rooms, pictures, exercises, cells and page
	@$(BIN)/python tests/browser/obtain.py
	@$(BIN)/python -m book.build.check $(CHAPTER)

bench: $(INSTALLED)  ## measure the library against the dense layers and against real processes
	@$(BIN)/python tests/bench.py

outputs: $(INSTALLED)  ## execute the stale chapters and store their outputs (ALL=1: every one; CHAPTER=name: that one)
	@$(BIN)/python -m book.build.outputs $(if $(ALL),--all) $(CHAPTER)

lab: $(INSTALLED)  ## open the chapters live in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=. chapters

badge: $(INSTALLED)  ## write the address of this repository (GITHUB_REPOSITORY or the git remote) into README.md
	@$(BIN)/python -m book.build.address

# With the oldest Python to be served (PYTHON=...): a newer one may pin what an older one cannot install.
requirements: requirements.in  ## resolve requirements.in anew and pin the result
	@rm -rf _build/resolve && $(PYTHON) -m venv _build/resolve
	@_build/resolve/bin/python -m pip install -qq -r requirements.in
	@_build/resolve/bin/python -m pip freeze --all | grep -v '^pip==' | sed 's/^\(torch==[0-9.]*\)+cpu$$/\1/' > requirements.txt
	@rm -rf _build/resolve

clean:  ## remove what was built (not .venv)
	rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info

.PHONY: help no-pages book test check bench outputs lab badge requirements clean
