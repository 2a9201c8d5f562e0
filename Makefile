# Everything sets itself up: Python >= 3.11 with its venv module and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types notebooks clean

demo: $(VENV)/.demo  ## the paper's central experiment: tables on the screen, pictures in runs/
	$(BIN)/bnrate run separate-rates --overwrite
	$(BIN)/bnrate run unified-rate --overwrite

test: $(VENV)/.test  ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python

notebooks: $(VENV)/.test  ## run each notebook at smoke size
	BNRATE_SMOKE=1 $(BIN)/python -m pytest -p no:warnings --nbmake notebooks/*.ipynb

clean:
	rm -rf $(VENV) build dist

$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

$(VENV)/.demo: EXTRAS = plot,cli,data
$(VENV)/.test: EXTRAS = test
