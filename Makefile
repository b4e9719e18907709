# Everything works from a fresh clone: each target makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
BIND ?= 127.0.0.1:8888
COMPILED := build/compiled
WHEEL := build/wheel/.built
BUILT_FROM = pyproject.toml $(shell find protoserve protoserve_pytest plugins hatch_*.py -name '*.py' -o -name '*.in')
# What is not in the tree any more must not be in the copy.
COPY = mkdir -p $(COMPILED) && \
  find $(COMPILED) -type f ! -path '$(COMPILED)/.venv/*' ! -name '*.so' ! -name .installed -delete && \
  git ls-files -z --cached --others --exclude-standard | xargs -0 tar -cf - | tar -xf - -C $(COMPILED)
# Tests wait more than they compute.
WORKERS ?= 4

.PHONY: run test test-compiled check docs bench chaos chaos-compiled clean

run: $(VENV)/.installed  ## serve the HTTP echo example
	$(BIN)/protoserve run http examples.http_echo:process --bind $(BIND)

test: $(VENV)/.installed-dev  ## run the tests; WORKERS=0 in one process
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

test-compiled: $(COMPILED)/.installed  ## run the tests on the compiled build, in a copy of the tree
	$(COPY)
	cd $(COMPILED) && .venv/bin/python -m pytest --numprocesses $(WORKERS)

check: $(VENV)/.installed-dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin

docs: $(VENV)/.installed-docs  ## build the site into site/; a link that leads nowhere fails
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet -d $(VENV)/doctrees docs site

bench: $(VENV)-bench/.installed $(VENV)-bench-pure/.installed  ## measure against other servers; needs wrk, h2load
	$(VENV)-bench/bin/python -m benchmarks $(BENCH)

chaos: $(VENV)/.installed-dev  ## races, resets and hangs, for five minutes; CHAOS='--seconds 60'
	$(BIN)/python tests/chaos $(CHAOS)

chaos-compiled: $(COMPILED)/.installed  ## the same on the compiled build
	$(COPY)
	cd $(COMPILED) && .venv/bin/python tests/chaos $(CHAOS)

clean:  ## remove what the other targets made
	rm -rf build $(VENV) $(VENV)-bench $(VENV)-bench-pure .mypy_cache .ruff_cache .pytest_cache .hypothesis site

# Compiled where there is a C compiler.
$(WHEEL): $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build/wheel
	$(PIP) wheel --no-deps --wheel-dir build/wheel .
	touch $@

# Of these two the last one made is what is installed.
$(VENV)/.installed: $(WHEEL)
	$(PIP) install build/wheel/*.whl
	$(PIP) install --no-deps --force-reinstall build/wheel/*.whl
	rm -f $(VENV)/.installed-dev
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PROTOSERVE_PURE=1 $(PIP) install --editable '.[dev]'
	rm -f $(VENV)/.installed
	touch $@

# A copy, so that the sources here stay what is tested as pure Python.
$(COMPILED)/.installed: $(BUILT_FROM)
	$(COPY)
	find $(COMPILED) -name '*.so' ! -path '$(COMPILED)/.venv/*' -delete
	test -x $(COMPILED)/.venv/bin/python || $(PYTHON) -m venv $(COMPILED)/.venv
	cd $(COMPILED) && PROTOSERVE_COMPILE=1 .venv/bin/python -m pip --disable-pip-version-check --quiet \
	  install --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	PROTOSERVE_PURE=1 $(PIP) install --editable '.[docs]'
	touch $@

# A peer that cannot be installed is named as missing in the report.
$(VENV)-bench/.installed-peers: benchmarks/requirements.txt
	test -x $(VENV)-bench/bin/python || $(PYTHON) -m venv $(VENV)-bench
	grep -v '^ *\(#\|$$\)' benchmarks/requirements.txt | while read -r peer; do \
	  $(VENV)-bench/bin/python -m pip --disable-pip-version-check --quiet install "$$peer" \
	    || echo "not installable: $$peer"; done
	touch $@

# Not editable: what is measured does not change meanwhile. This one is compiled; where it cannot
# be, the report says so.
$(VENV)-bench/.installed: $(VENV)-bench/.installed-peers $(WHEEL)
	$(VENV)-bench/bin/python -m pip --disable-pip-version-check --quiet install uvloop build/wheel/*.whl
	$(VENV)-bench/bin/python -m pip --disable-pip-version-check --quiet install \
	  --no-deps --force-reinstall build/wheel/*.whl
	touch $@

$(VENV)-bench-pure/.installed: $(BUILT_FROM)
	test -x $(VENV)-bench-pure/bin/python || $(PYTHON) -m venv $(VENV)-bench-pure
	PROTOSERVE_PURE=1 $(VENV)-bench-pure/bin/python -m pip --disable-pip-version-check --quiet \
	  install '.[uvloop]'
	touch $@
