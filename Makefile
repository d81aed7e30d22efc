# `make demo` and `make test` set everything up by themselves, in .venv; they need Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench reliability docs corpus adapter clean

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" python benchmarks/demo.py

test: check
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks:training $(BIN)/mypy benchmarks/*.py spec/*.py docs/*.py training/*.py

bench: $(READY)
	$(BIN)/python benchmarks/run.py

reliability: $(READY)
	$(BIN)/python benchmarks/reliability.py

docs: $(READY)
	$(BIN)/python docs/make_site.py

corpus: $(READY)
	$(BIN)/python training/evaluation.py
	PYTHONPATH=.:benchmarks $(BIN)/python training/corpus.py all --measured build/evaluation

# How long is up to MINUTES: on a GPU minutes, on two cores days.
MINUTES ?= 600
SCALE ?= 0.6
adapter: $(READY)
	$(BIN)/python training/weights.py
	$(BIN)/python training/data.py evaluation
	$(BIN)/python training/data.py select 340000000
	$(BIN)/python training/data.py tokenize
	$(BIN)/python training/dialogues.py --count 2048
	$(BIN)/python training/train.py --minutes $(MINUTES) --resume --out build/training/run \
		--corpus build/training/tokens.safetensors build/training/generated.safetensors
	$(BIN)/python training/export.py build/training/run/adapter.safetensors build/training/adapter.safetensors \
		--scale $(SCALE)
	$(BIN)/python training/means.py build/training/adapter.safetensors
	$(BIN)/python training/evaluate.py --adapter build/training/adapter.safetensors

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[test,bench]"
	mkdir -p .venv/typed && ln -sfn ../../cli .venv/typed/memcodec_cli  # cli/ under its installed name, for mypy
	touch $@
