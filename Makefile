# The checks of the project. Each target first brings .venv up to date, which takes no time when it is.

BIN := .venv/bin
NATIVE := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)
SHELL_SCRIPTS := setup.sh .ci/run

# The sanitised extension lies in a folder of its own and is put before the installed one. `python -S`
# keeps the editable installation out of the way: its hook would win over PYTHONPATH.
ASAN := build/asan
ASAN_PRELOAD = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)
ASAN_TESTS := $(wildcard tests/parity tests/unit/cpu)

.PHONY: dev lint format test test-asan bench clean

dev:
	@./setup.sh dev

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(if $(NATIVE),$(BIN)/clang-format --dry-run -Werror $(NATIVE))
	$(BIN)/shellcheck $(SHELL_SCRIPTS)

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(NATIVE),$(BIN)/clang-format -i $(NATIVE))

test:
	@./setup.sh test

# AddressSanitizer and UBSan over the native engine. Leaks are not looked for: Python keeps memory at exit.
test-asan: dev
	rm -rf $(ASAN)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $(ASAN) \
	  --config-settings=build-dir=build/asan-cmake \
	  --config-settings=cmake.define.BITNET_SANITIZE=ON .
	PYTHONPATH=$(ASAN):$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))') \
	  PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  LD_PRELOAD="$(ASAN_PRELOAD)" $(BIN)/python -S -m pytest -p no:cacheprovider $(ASAN_TESTS)

# make bench MODEL=DIR BENCH="-t 1,2 --batch 1,8,32"; without MODEL the embedded one
bench: dev
	$(BIN)/bitnet bench $(if $(MODEL),--model $(MODEL)) $(BENCH)

clean:
	rm -rf build dist
