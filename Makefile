# Two commands for a newcomer: `make demo` and `make test`. Everything they need is installed into .venv.

PYTHON   ?=                 # an interpreter to use; empty: the first of 3.11 to 3.13 that is found
TORCH    ?= torch==2.13.0   # installed first, so that nothing else can pull another build
PIP_ARGS ?=                 # for that install only, e.g. --index-url of a CPU-only or CUDA build
MODEL    ?=                 # for `make demo`: a GGUF file or a Hugging Face directory
PYTEST_ARGS ?=
# Clients whose environments `make test-clients` builds; lm-eval's, with half a gigabyte of data tools, is a target of its own.
CLIENTS := openai2 openai3 anthropic litellm langchain

VENV := .venv
BIN  := $(VENV)/bin
INSTALL = PYTHON="$(strip $(PYTHON))" TORCH="$(strip $(TORCH))" PIP_ARGS="$(strip $(PIP_ARGS))" .ci/install

.PHONY: help demo test test-clients test-lm-eval client-envs lm-eval-env check lint types imports format proto bench bench-overhead bench-failover clean

help:  ## Say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed-run  ## Run the whole mesh on this machine: pack, sign, seed, three nodes, one answer
	@$(BIN)/mesh demo $(if $(strip $(MODEL)),--model "$(strip $(MODEL))")

test: $(VENV)/.installed-dev  ## Run the whole test suite
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

test-clients: client-envs  ## Drive real clients, each in an environment of its own, against a mesh with the real model
	@$(BIN)/python -m pytest tests/clients/test_real_clients.py $(PYTEST_ARGS)

test-lm-eval: lm-eval-env  ## Run lm-eval against meshes of one and three nodes: the scores of one process
	@$(BIN)/python -m pytest tests/clients/test_lm_eval.py $(PYTEST_ARGS)

lm-eval-env: $(VENV)/.installed-dev
	@.ci/client-envs $(BIN)/python lm-eval

client-envs: $(VENV)/.installed-dev
	@.ci/client-envs $(BIN)/python $(CLIENTS)

check: lint types imports  ## Lint, types and import directions, without the tests

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

imports: $(VENV)/.installed-dev
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(VENV)/.installed-dev  ## Generate mesh/wire/*_pb2 from proto/
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/mesh/wire/*.proto
	@rm -f mesh/wire/common_pb2_grpc.py  # no service in it

bench: $(VENV)/.installed-dev  ## Tokens per second: one process, three nodes, transformers, side by side
	@$(BIN)/python -m benchmarks.decode

bench-overhead: $(VENV)/.installed-dev  ## Milliseconds that HTTP and the coordinator add to each token
	@$(BIN)/python -m benchmarks.overhead

bench-failover: $(VENV)/.installed-dev  ## Seconds a client waits when a stage is killed or frozen in the middle of its answer
	@$(BIN)/python -m benchmarks.failover

bench-weights: $(VENV)/.installed-dev  ## Pack, verify, encode and spread, short, one after the other; figures in build/bench-weights
	@mkdir -p build/bench-weights
	@$(BIN)/python -m benchmarks.pack --rounds 3 --json build/bench-weights/pack.json
	@$(BIN)/python -m benchmarks.verify --rounds 3 --mib 128 --out build/bench-weights/verify.json
	@$(BIN)/python -m benchmarks.encoding --rounds 3 --json > build/bench-weights/encoding.json
	@$(BIN)/python -m benchmarks.spread --runs 1 --mib 24 --fast-mib 240 --json build/bench-weights/spread.json

clean:  ## Remove what was installed and built here
	rm -rf $(VENV) .clients .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info

$(VENV)/.installed-%: pyproject.toml .ci/install hatch_build.py $(wildcard mesh/model/native/*.c mesh/model/native/*.h)
	@$(INSTALL) $(VENV) $*
