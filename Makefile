# `make demo` shows what tracer does, `make test` checks it. Both set up .venv first, once.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test install docs readme clean

demo: $(INSTALLED)
	@mkdir -p demo
	$(BIN)/tracer trace "The capital of the state containing Dallas is" -o demo/dallas.graph
	@sh install_graphviz.sh
	@for kind in $$(command -v neato > /dev/null && echo svg png || echo dot); do \
		$(BIN)/tracer render demo/dallas.graph -o demo/dallas.$$kind || exit; done
	@echo "The graph and its pictures are in $(CURDIR)/demo"

test: $(INSTALLED)
	@sh install_browser.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

install: $(INSTALLED)

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt install_graphviz.sh
	@test -n "$(PYTHON)" || { echo "tracer needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,docs]"
# By itself: it asks for torchvision, which it does not use and which must be of torch's own build.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps kronfluence
	sh install_graphviz.sh
	@touch $@

# The documentation as a site, in site/.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Draws the picture and fills in what documents show of commands, benchmarks, supported models and the tree.
readme: $(INSTALLED)
	$(BIN)/python -m docs.fill_readme

clean:
	rm -rf .venv demo site
