# `make demo` and `make test` set everything up by themselves, in .venv; they need Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench reliability docs clean

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" python benchmarks/demo.py

test: check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py spec/*.py docs/*.py

bench: $(READY)
	$(BIN)/python benchmarks/run.py

reliability: $(READY)
	$(BIN)/python benchmarks/reliability.py

docs: $(READY)
	$(BIN)/python docs/make_site.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[test,bench]"
	mkdir -p .venv/typed && ln -sfn ../../cli .venv/typed/memcodec_cli  # cli/ under its installed name, for mypy
	touch $@
