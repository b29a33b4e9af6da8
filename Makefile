# The two commands a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
ORACLE := .venv-oracle
BIN := $(VENV)/bin

.PHONY: demo test fast lint bench bench-quick coverage architectures fuzz native clean

demo: $(VENV)/.installed
	$(BIN)/cpuc compile examples/minilm-qa -o artifacts/model.pt --force
	$(BIN)/cpuc run artifacts/model.pt --input examples/q.json

# Files of tests run side by side, and threads that wait for work don't spin meanwhile; what measures runs alone.
BESIDE := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: lint $(ORACLE)/.installed
	$(BESIDE) -m "not alone"
	$(BIN)/python -m pytest -m alone

# Without the tests marked slow.
fast: lint $(ORACLE)/.installed
	$(BESIDE) -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	# mypy finds packages by folder name, and the package's folder is the repository.
	mkdir -p build && ln -sfn .. build/cpuc
	MYPYPATH=build $(BIN)/mypy --no-namespace-packages -p cpuc

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

# The question-answering pipeline that decoding is compared with left transformers in version 5. Version 4.57 lives in
# an environment of its own, which borrows torch from the first one.
$(ORACLE)/.installed: $(VENV)/.installed-test
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet "transformers==4.57.*"
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$($(ORACLE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz_torch.pth"
	touch $@

# cpuc against other engines, docs/benchmarks; hours, or minutes for one model in float32. DATA is a SQuAD file. Nothing else should run meanwhile.
PEERS := .venv-peers
DATA ?=
bench bench-quick: $(VENV)/.installed-bench $(PEERS)/.installed
	$(BIN)/python benchmarks/compare.py --peers $(PEERS)/bin/python $(if $(DATA),--data $(DATA)) $(if $(filter bench-quick,$@),--quick --output build/bench/quick)

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@

$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement $<
	touch $@

# The table of what compiles, docs/coverage.md; nothing else should run meanwhile.
coverage: $(VENV)/.installed-test
	$(BIN)/python benchmarks/coverage.py

# The same models against other engines, docs/benchmarks/architectures.md, in an hour; nothing else should run meanwhile.
architectures: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python benchmarks/architectures.py --peers $(PEERS)/bin/python

# The readers of bundles and of input, FUZZ_SECONDS each; what is found is written to build/fuzz.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --editable ".[fuzz]"
	mkdir -p build/fuzz
	for target in bundle manifest records signature tensors tokenizer; do \
		$(BIN)/python tests/fuzz.py $$target -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096 \
			-artifact_prefix=build/fuzz/$$target- || exit 1; \
	done

# cpuc-run and libcpuc, which need no Python; in build/native.
native: $(VENV)/.installed
	$(BIN)/python -c "from cpuc.compiler.native import main; main()" build/native

clean:
	rm -rf $(VENV) $(ORACLE) $(PEERS) build artifacts/*.pt
