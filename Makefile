# Every verb works on a bare Debian machine with Python 3.11 or newer, make and root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
VLLM_VENV ?= $(if $(HEADROOM_VLLM_VENV),$(HEADROOM_VLLM_VENV),.venv-vllm)
SECONDS ?= 3600
URL ?=
LISTEN ?= 127.0.0.1:9890

LLAMACPP ?= $(if $(HEADROOM_LLAMACPP),$(HEADROOM_LLAMACPP),.cache/llamacpp)

.PHONY: help demo run test unit lint type fmt docs generated golden packages wheel test-vllm test-llamacpp validation \
	validate-simulator throughput bench backtest dialects boards rules-cost soak resources image-trial sbom audit pins clean

help: ## Show the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

demo: $(RUNTIME) ## Watch a vLLM (URL=http://host:port, or localhost:8000), or a simulated one, from first poll to headroom
	@$(BIN)/headroom-exporter demo --listen $(LISTEN) $(if $(URL),--url $(URL))

test: lint type docs unit ## Install what is needed and run every test but the real vLLM's

unit: $(DEV) packages
	$(BIN)/pytest -m "not vllm and not llamacpp and not bench"

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: $(DEV)
	$(BIN)/mypy

fmt: $(DEV) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV) ## Check that generated files are what their sources say
	$(BIN)/python tools/metrics_doc.py --check
	$(BIN)/python tools/engines_doc.py --check
	$(BIN)/python grafana/build.py --check
	$(BIN)/python tools/chart_files.py --check
	$(BIN)/python tools/keep_list.py --check
	$(BIN)/python tools/supply_chain.py licences --check

generated: $(DEV) ## Write what docs checks: metrics, engines, boards, the chart's copies, licences
	$(BIN)/python tools/metrics_doc.py
	$(BIN)/python tools/engines_doc.py
	$(BIN)/python grafana/build.py
	$(BIN)/python tools/chart_files.py
	$(BIN)/python tools/keep_list.py
	$(BIN)/python tools/supply_chain.py licences

golden: $(DEV) packages ## Write the golden files anew; look at the diff
	$(BIN)/python tools/metrics_doc.py
	$(BIN)/pytest tests/golden --update-golden
	$(BIN)/python tools/engines_doc.py

packages: ## Debian packages that the tests need
	@tools/packages.sh cc:gcc promtool:prometheus prometheus:prometheus amtool:prometheus-alertmanager \
		prometheus-alertmanager:prometheus-alertmanager chromium:chromium setpriv:util-linux

test-vllm: $(DEV) packages ## Prove the exporter on a real vLLM, on this machine's CPU (3.4 GB, about ten minutes)
	$(BIN)/python tools/install_vllm.py $(VLLM_VENV)
	HEADROOM_VLLM_VENV=$(abspath $(VLLM_VENV)) $(BIN)/pytest tests/vllm -m vllm

test-llamacpp: $(DEV) packages ## Prove it on a real llama.cpp server, built here (about four minutes, once)
	@tools/packages.sh cmake:cmake g++:g++
	$(BIN)/python tools/install_llamacpp.py $(LLAMACPP)
	HEADROOM_LLAMACPP=$(abspath $(LLAMACPP)) $(BIN)/pytest tests/llamacpp -m llamacpp

validation: ## Prove it on a real vLLM and write docs/validation.md
	mkdir -p .cache
	HEADROOM_FIGURES=$(abspath .cache/figures.json) $(MAKE) test-vllm
	$(BIN)/python tools/validation_doc.py .cache/figures.json

validate-simulator: $(DEV) ## Hold the simulated engine against the recorded runs of a real vLLM
	$(BIN)/python tools/validate_simulator.py

throughput: $(DEV) ## Hold the simulated engine's speed against published tables; write docs/throughput.md
	$(BIN)/python tools/throughput_check.py --write

bench: $(DEV) packages ## Measure; asserts nothing
	$(BIN)/python tools/install_vllm.py $(VLLM_VENV)
	HEADROOM_VLLM_VENV=$(abspath $(VLLM_VENV)) $(BIN)/python tests/bench/bench.py

backtest: $(DEV) packages ## Score the alert rules and everyone else's on 72 scenarios; write docs/backtest.md (20 minutes)
	PYTHONPATH=tools $(BIN)/python -m scoreboard.board

dialects: $(DEV) packages ## Score the pages on the same traffic told by other engines; write docs/dialects.md (15 minutes)
	PYTHONPATH=tools $(BIN)/python -m scoreboard.dialects

boards: $(DEV) packages ## Write the Grafana dashboards anew, their previews and what they cost
	$(BIN)/python grafana/build.py
	$(BIN)/python tools/boards_preview.py
	$(BIN)/python tools/fleet_board_cost.py

rules-cost: $(DEV) packages ## Measure what the rules cost a Prometheus at 1,000 engines live and 10,000 rule by rule; write docs/rules-cost.md
	$(BIN)/python tools/rules_cost

soak: $(DEV) packages ## Soak a real exporter for an hour among failing engines, API server and GPUs (SECONDS=3600)
	PYTHONPATH=tools:tests $(BIN)/python -m soak run --seconds $(SECONDS)

resources: $(DEV) packages ## Measure what requests and limits need, soak; write docs/resources.md (90 minutes)
	rm -rf .cache/soak
	PYTHONPATH=tools:tests $(BIN)/python -m soak costs --folder .cache/soak/costs
	PYTHONPATH=tools:tests $(BIN)/python -m soak run --folder .cache/soak/hour
	PYTHONPATH=tools:tests $(BIN)/python -m soak run --seconds 960 --haste 4 --seed 2 --pods 20 --folder .cache/soak/fast
	PYTHONPATH=tools:tests $(BIN)/python -m soak page --soak .cache/soak/{hour,fast}/soak.json --costs .cache/soak/costs/costs.json

image-trial: $(DEV) ## Build the container image with buildah on a debootstrap base, and run both targets (root; 1.5 GB)
	$(BIN)/python tools/build_image.py --target sidecar
	$(BIN)/python tools/build_image.py --target node

sbom: $(DEV) ## Write the CycloneDX bills of material of both image targets to dist/
	mkdir -p dist
	$(BIN)/python tools/supply_chain.py sbom sidecar > dist/sidecar.cdx.json
	$(BIN)/python tools/supply_chain.py sbom node > dist/node.cdx.json

audit: $(DEV) ## Ask the index for known vulnerabilities of what we ship; exit 3 where it does not answer
	$(BIN)/python tools/supply_chain.py audit

wheel: $(DEV) ## Build the wheel
	$(BIN)/python -m build --no-isolation --wheel --outdir dist

pins: ## Pin the requirements anew, with hashes
	$(PYTHON) -m venv .cache/pins
	.cache/pins/bin/pip --quiet install pip-tools
	$(call pin,runtime.txt,../pyproject.toml)
	$(call pin,build.txt,build.in)
	$(call pin,kubelet.txt,kubelet.in)
	$(call pin,dev.txt,dev.in)

define pin
	cd requirements && CUSTOM_COMPILE_COMMAND="make pins" ../.cache/pins/bin/pip-compile --quiet --upgrade \
		--generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links \
		--no-emit-trusted-host --output-file $(1) $(2)
endef

clean: ## Remove what make made, the real vLLM's environment apart
	rm -rf $(VENV) dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@tools/packages.sh python3-venv
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(BIN)/python requirements/runtime.txt pyproject.toml
	$(PIP) install --require-hashes -r requirements/runtime.txt
	$(PIP) install --require-hashes -r requirements/build.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(RUNTIME) requirements/dev.txt
	$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
