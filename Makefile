# One virtual environment in .venv, with this checkout installed in editable form.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# setuptools warns that ./graphc may hide the editable package: they are the same files
QUIET  := PYTHONWARNINGS=ignore
TORCH  ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz fuzz-artifacts fuzz-programs lint format types peers parity bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1|/' | column -t -s '|' 2>/dev/null \
	  || grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST)

$(VENV)/base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(QUIET) $(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(QUIET) $(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(VENV)/base  ## train GPT-2 nano on real text (a minute or two)
	$(BIN)/graphc train models/gpt2.py

test: $(VENV)/dev  ## run the tests
	$(BIN)/python -m pytest

fuzz: $(VENV)/dev  ## compile 2,000 random graphs and every op, dtype and shape; read 100,000 damaged artifacts
	$(MAKE) --jobs 2 --output-sync=target fuzz-artifacts fuzz-programs

fuzz-artifacts: $(VENV)/dev
	$(BIN)/python -m pytest tests/test_artifact_fuzz.py --mutations 100000

fuzz-programs: $(VENV)/dev
	$(BIN)/python -m pytest tests/test_fuzz.py tests/test_op_grid.py --graphs 2000 --thorough

lint: $(VENV)/dev  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev  ## check types, on an installed copy: mypy does not follow the editable mapping
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p graphc

peers: $(VENV)/dev  ## install PyTorch, transformers and JAX, for parity
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet 'transformers>=4.48' 'jax>=0.5'

parity: peers  ## compare with PyTorch, transformers and JAX, live
	$(BIN)/python -m pytest tests/parity

bench: $(VENV)/dev  ## time all workloads beside PyTorch, JAX, ONNX Runtime and OpenVINO
	$(BIN)/python -m pip install --quiet '$(TORCH)' 'jax>=0.5' onnx onnxscript onnxruntime openvino
	$(BIN)/python bench/run.py --profile
	$(BIN)/python bench/plots.py
	$(BIN)/python bench/readme.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
