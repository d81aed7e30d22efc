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

# It takes MINUTES of training and the preparation: on a GPU minutes, on two cores hours. Existing output is not made again.
MINUTES ?= 600
SCALE ?= 0.6
BUILD := build/training
adapter: $(READY) $(BUILD)/evaluation.safetensors $(BUILD)/tokens.safetensors $(BUILD)/generated.safetensors
	$(BIN)/python training/train.py --minutes $(MINUTES) --resume --out $(BUILD)/run \
		--corpus $(BUILD)/tokens.safetensors $(BUILD)/generated.safetensors
	$(BIN)/python training/export.py $(BUILD)/run/adapter.safetensors $(BUILD)/adapter.safetensors --scale $(SCALE)
	$(BIN)/python training/means.py $(BUILD)/adapter.safetensors
	$(BIN)/python training/evaluate.py --adapter $(BUILD)/adapter.safetensors

build/corpus/%.jsonl.zst:
	@echo "$@ is missing: run make corpus first" >&2; exit 1

$(BUILD)/weights.safetensors: | $(READY)
	$(BIN)/python training/weights.py

$(BUILD)/evaluation.safetensors: build/corpus/valid.jsonl.zst | $(BUILD)/weights.safetensors
	$(BIN)/python training/data.py evaluation

$(BUILD)/selected.jsonl.zst: build/corpus/train.jsonl.zst | $(BUILD)/weights.safetensors
	$(BIN)/python training/data.py select 340000000

$(BUILD)/tokens.safetensors: $(BUILD)/selected.jsonl.zst
	$(BIN)/python training/data.py tokenize

$(BUILD)/generated.safetensors: | $(BUILD)/weights.safetensors
	$(BIN)/python training/dialogues.py --count 2048

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[test,bench]"
	mkdir -p .venv/typed && ln -sfn ../../cli .venv/typed/memcodec_cli  # cli/ under its installed name, for mypy
	touch $@
