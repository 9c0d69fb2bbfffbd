# Nothing but Python 3.11+ and make is needed. `make demo` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
KEEP ?=

.PHONY: help setup demo test test-hosts check fmt proto pictures bench bench-training gpu-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort

setup: $(VENV)/.ready  ## make the virtual environment

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo 'installing into $(VENV): 2 GB, more with CUDA; takes some minutes …'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## the whole story on real data; DATA=path/to/parquet for another set, KEEP=1 keeps service and page up
	$(BIN)/python -m trainer_examples.demo $(if $(DATA),--data $(DATA)) $(if $(KEEP),--keep)

test: setup check  ## everything CI runs
	$(BIN)/python -m pytest

check: setup  ## format, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

fmt: setup  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: setup  ## regenerate the protobuf code; the virtual path makes its imports right
	$(BIN)/python -m grpc_tools.protoc -Isampler_client/_pb=protos/sampler/v1 \
		--python_out=client --pyi_out=client --grpc_python_out=client protos/sampler/v1/sampler.proto

test-hosts: setup  ## only the test across hosts, which are namespaces of this machine; as root
	$(BIN)/python -m pytest tests/cluster/test_hosts.py

pictures: setup  ## the pictures of the page in docs/images, taken anew; needs Chromium
	$(BIN)/python -m docs.pictures

BENCHMARKS := variance gradient_variance convex sketching serving staleness scorers draws monitoring recipes records

# Those that take real data where DATA says where it is.
WITH_DATA := gradient_variance records

bench: $(BENCHMARKS:%=bench-%)  ## every benchmark but training and hosts

bench-%: setup  ## one benchmark: bench-variance, -gradient_variance, -convex, -sketching, -serving, -staleness, -scorers, -draws, -monitoring, -recipes, -records, -hosts (as root); DATA=folder where it takes real data
	$(BIN)/python -m benchmarks.$* --json benchmarks/results/$*.json $(if $(and $(DATA),$(filter $*,$(WITH_DATA))),--data $(DATA))

bench-training: setup  ## samplers against shuffled epochs, about 3 hours; DATA=folder with mnist/ and cifar10/
	$(BIN)/python -m benchmarks.training $(if $(DATA),--data $(DATA))

gpu-check: setup  ## what needs a GPU: FAISS-GPU shards, sketching on CUDA
	$(BIN)/python -m benchmarks.gpu_check --json benchmarks/results/gpu_check.json

clean:
	rm -rf $(VENV) build dist out
