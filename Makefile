# The doors: `make quickstart`, `make real`, `make test`, `make check`, `make bench`, `make docs`. Each sets up by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := formats,tts,data,train,eval,serve,demo,vad,export,onnx,docs,dev
OUT    ?= runs/quickstart
SPEECH ?=

.PHONY: quickstart real test test-versions check bench docs clean
quickstart: $(VENV)/.ready
	$(BIN)/llaso quickstart --out $(OUT) $(if $(SPEECH),--speech $(SPEECH))

# From real pretrained parts and people's speech: make real SPEECH=PATH [ENCODER=DIR_OR_ID LLM=DIR_OR_ID OUT=DIR]
real: OUT = runs/real
real: $(VENV)/.ready
	$(BIN)/llaso real --out $(OUT) $(if $(SPEECH),--speech $(SPEECH)) $(if $(ENCODER),--encoder $(ENCODER)) $(if $(LLM),--llm $(LLM))

# Order and drawn examples are the same in each run; `pytest` by itself draws new ones.
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --randomly-dont-reorganize --hypothesis-profile=ci $(ARGS)

# The lowest transformers, the one in constraints.txt and the newest, each in an environment of its own (half an hour).
test-versions: $(VENV)/.ready
	LLASO_TEST_VERSIONS=1 $(BIN)/python -m pytest -m versions tests/model/test_versions.py $(ARGS)

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.ready
	$(BIN)/zensical build --strict

# torch goes first, by itself: whatever depends on it then finds it and downloads no second build.
# mistral-common (Voxtral's tokenizer, for its test) goes last and alone: it asks for an older numpy than it needs.
$(VENV)/.ready: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps mistral-common
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
