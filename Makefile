# The words of this project. `make demo` and `make test` set up all they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard native/CMakeLists.txt native/src/* native/bench/*)

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-reference soak sanitize emulate check format bench-serve bench-llm clean

help:  ## what one can say here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)  ## set up, serve the sample models, send them real inputs, check the answers
	$(BIN)/farthing demo

serve: $(STAMP)  ## set up and stay up with the sample models
	$(BIN)/farthing serve sample:effnet-lite0 sample:minilm-l6 sample:ppocr-v4 sample:silero-vad sample:magika sample:wdbc-gbdt sample:smollm2-135m

test: $(STAMP)  ## set up and run all tests, a file at a time on each core
	$(BIN)/python -m pytest -n $(or $(shell nproc 2>/dev/null),2) --dist loadfile

test-reference: $(STAMP)  ## with torch and transformers too: every family of language models against its origin
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,reference]"
	$(BIN)/python -m pytest tests/llm tests/native

soak: $(STAMP)  ## 20 minutes of mixed load, loads and unloads: every answer right, nothing left over, memory flat
	$(BIN)/python -m tests.soak --minutes 20

sanitize: $(STAMP)  ## the native tests under address and undefined-behaviour sanitizers (some minutes)
	$(BIN)/cmake -S native -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DFARTHING_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build build/sanitize
	FARTHING_NATIVE=$$(ls build/sanitize/_native*.so) FARTHING_BENCH=$$(ls build/sanitize/_bench*.so) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest -p tests.native.other_build tests/native tests/llm/runners/test_cpu.py \
		tests/llm/test_packing.py tests/bench/test_drivers.py tests/bench/test_grpc.py tests/bench/test_mlperf.py \
		--timeout 600

emulate: $(STAMP)  ## the kernels for AVX-512 and AMX on any processor with AVX2, slowly: what they compute, not how fast (ten minutes)
	$(BIN)/cmake -S native -B build/emulate -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DCMAKE_BUILD_TYPE=Release -DFARTHING_EMULATE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build build/emulate
	for isa in amx avx512vnni avx512; do \
		FARTHING_NATIVE=$$(ls build/emulate/_native*.so) FARTHING_BENCH=$$(ls build/emulate/_bench*.so) FARTHING_ISA=$$isa \
			$(BIN)/python -m pytest -p tests.native.other_build tests/native tests/llm/runners tests/llm/test_packing.py \
			--timeout 600 || exit 1; \
	done

check: $(STAMP)  ## format, lint, types, arrows between rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## put the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Options of the two below: make bench-serve BENCH='--only farthing,mlserver --rounds 1'
bench-serve: $(STAMP)  ## the README's table of small models: Farthing and its peers, one core each, in one run (about an hour)
	$(BIN)/python benchmarks/serve.py --readme $(BENCH)

bench-llm: $(STAMP)  ## the README's table of language models: Farthing and its peers on this CPU, in one run (about an hour)
	$(BIN)/python benchmarks/llm_cpu/run.py --readme $(BENCH)

clean:  ## as if freshly cloned
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
