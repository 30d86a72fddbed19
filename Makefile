# `make run` does the main job, `make test` passes the tests; both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test fast slow check papers clean

run: $(READY)
	$(BIN)/fedloom run examples/quickstart.yaml

test: check fast slow

fast: $(READY)
	$(BIN)/python -m pytest -n auto -m "not slow and not peer"

slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m "slow and not peer" --ignore=tests/faults
	$(BIN)/python -m pytest -n 4 -m "slow and not peer" tests/faults

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

papers: $(READY)
	$(BIN)/python -m fedloom.algorithms.papers > docs/papers.md

# Set up once; again only when what it is made from has changed.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
