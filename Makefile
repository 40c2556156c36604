# Longarm. Every target sets up what it needs by itself.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTO := wire/src/longarm/policy/v1/policy_service.proto
SOURCES := wire/src service/src edge/src sim/src tests scripts/*.py

.PHONY: help demo demo-ssh test bench lint types proto format setup images clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(READY)  ## Drive the simulated arm from a real policy service, 20 s, no GPU and no robot
	$(BIN)/longarm-edge demo

demo-ssh: $(READY)  ## The same through a private sshd and the tunnel
	$(BIN)/longarm-edge demo-ssh

test: $(READY)  ## Run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(READY)  ## Measure against LeRobot's own async pair, 15 min (BENCH_ARGS="--links 40/10 --seconds 10")
	$(BIN)/python -m bench $(BENCH_ARGS)

lint: $(READY)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Check types
	$(BIN)/mypy

format: $(READY)  ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: $(READY)  ## Generate the protocol's Python code
	$(BIN)/python scripts/generate_proto.py

setup: $(READY)  ## Make the virtual environment

images:  ## Build the Docker images longarm-server and longarm-client, and print their sizes
	scripts/build-images
	scripts/image-sizes

clean:  ## Remove the virtual environment and what runs left behind
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): scripts/setup images/requirements/dev.txt images/requirements/torch.txt $(wildcard */pyproject.toml)
	scripts/setup $(VENV)
	@touch $@
