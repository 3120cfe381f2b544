# Everything a fresh machine needs comes from here: a virtual environment in .venv, then the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXAMPLE := examples/coder-burst.json
PICTURES := docs/img

.PHONY: demo test check format pictures clean help

help:
	@echo "make demo     solve the shipped example, write the plan and its plots to out/"
	@echo "make test     run the tests"
	@echo "make check    ruff, mypy --strict, import-linter"
	@echo "make format   let ruff mend what it can"
	@echo "make bench-X  run benchmarks/X.py, for example make bench-dp-speed; results go to benchmarks/results/"
	@echo "make pictures redraw the pictures of README.md and docs/"
	@echo "make clean    remove .venv, out/ and caches"

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
	rm -rf $(VENV) out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
