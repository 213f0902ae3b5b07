PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/simd/*.h csrc/simd/*.cpp)
EMULATOR_SOURCES := $(wildcard tests/ptxemu/core/*.h tests/ptxemu/core/*.cpp)

# What the compiled module runs through.
NATIVE_TESTS := $(addprefix tests/test_,cpp.py cpp_backward.py dpc_knn_cpp.py edge_cases.py \
	error_table.py errors.py invariants.py merge.py oracle.py threshold_greedy_cpp.py)
PTX_ARCHS := 80 90
ptx_env := PYTHONPATH=tests PTXEMU_CACHE=build OMP_NUM_THREADS=1
INSTRUCTION_SETS := avx512 avx2 baseline
sanitized_flags := -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=undefined
# Python itself knows nothing of the sanitizers, and leaks on purpose.
# An allocation that is too large is an error there, not the end of the process.
sanitized_env := ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)"

.PHONY: demo stage1 small-world token-swap test lint format bench bench-docs compile-report kernel-counts mutants clean fuzz test-threads test-ptx build-sanitized test-sanitized $(INSTRUCTION_SETS:%=test-%) $(PTX_ARCHS:%=test-ptx-%) $(SWAPPED:%=token-swap-%)

demo: $(INSTALLED)
	$(BIN)/python bench/demo.py --out demo_out
	$(BIN)/setok bench --out demo_out/bench.json

# A worker per core, each with one thread: two threads each would wait for one another.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not gpu" --cov=setok_kernels --cov-fail-under=95 \
		--numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(EMULATOR_SOURCES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) $(EMULATOR_SOURCES)

stage1: $(INSTALLED)
	$(BIN)/setok train --config model/configs/stage1_tiny.yaml --out runs/tiny

# Stages 1 to 3 at small scale, each from the model of the one before, and their figures.
small-world: $(INSTALLED)
	$(BIN)/setok train --config model/configs/stage1_small_world.yaml --out runs/small-world/stage1
	$(BIN)/setok train --config model/configs/stage2_tiny.yaml --out runs/small-world/stage2
	$(BIN)/setok train --config model/configs/stage3_tiny.yaml --out runs/small-world/stage3

# As many tokens of each kind, but for `patches`, which are all; see docs/small-world.md.
SWAPPED := clusters grid queries patches
grid_tokens := "model.token_grid=[3, 3]"
queries_tokens := model.num_queries=9
patches_tokens := "model.grid=[8, 8]" model.patch_size=16

token-swap: $(SWAPPED:%=token-swap-%)

$(SWAPPED:%=token-swap-%): token-swap-%: $(INSTALLED)
	$(BIN)/setok train --config model/configs/stage1_small_world.yaml --out runs/token-swap/$*/stage1 \
		steps=700 model.tokens=$* $($*_tokens)
	$(BIN)/setok train --config model/configs/token_swap.yaml --out runs/token-swap/$*/stage2 \
		setok=runs/token-swap/$*/stage1/model

# Clones of the peers below PEER_ROOT are measured too: make bench PEER_ROOT=clones
bench: $(INSTALLED)
	$(BIN)/python bench/run.py --suite cpu --out bench_out/cpu.json \
		$(if $(PEER_ROOT),--peer-root $(PEER_ROOT))
	$(BIN)/python bench/run.py --suite pipeline --device cpu --out bench_out/pipeline.json
	$(BIN)/python bench/report.py bench_out/cpu.json bench_out/pipeline.json --out bench_out/report

bench-docs: $(INSTALLED)
	$(BIN)/python bench/report.py --docs

# The compiled module once more, with other flags and beside the installed one.
build-sanitized: $(INSTALLED)
	mkdir -p build
	CXXFLAGS="$(sanitized_flags)" LDFLAGS="$(filter -fsanitize%,$(sanitized_flags))" \
		$(BIN)/python setup.py -q build --build-base build/sanitized >build/sanitized.log 2>&1
	cd build/sanitized/lib.* && $(sanitized_env) PYTHONPATH=. $(abspath $(BIN))/python -c "\
	import setok_kernels._C as c; print(c.__file__, c.build_info()); assert '/build/sanitized/' in c.__file__"

test-sanitized: build-sanitized
	PYTHONPATH=$$(echo build/sanitized/lib.*) $(sanitized_env) $(BIN)/pytest -q $(NATIVE_TESTS)

# The installed module, limited to one of the instruction sets that it has kernels for.
$(INSTRUCTION_SETS:%=test-%): test-%: $(INSTALLED)
	SETOK_CPU_CAPABILITY=$* $(BIN)/python -c "\
	import setok_kernels._C as c; print(i := c.build_info()); assert i['isa'] == '$*'"
	SETOK_CPU_CAPABILITY=$* $(BIN)/pytest -q $(NATIVE_TESTS)

# N random calls, valid and invalid, under the sanitizers; SEED is that of the first one. One call
# again: make fuzz N=1 SEED=...
N ?= 20000
SEED ?= 0
fuzz: build-sanitized
	cd build/sanitized/lib.* && $(sanitized_env) OMP_NUM_THREADS=2 \
		$(abspath $(BIN))/python -m setok_kernels.testing.fuzz --calls $(N) --seed $(SEED)

test-threads: $(INSTALLED)
	for threads in 1 2 4; do OMP_NUM_THREADS=$$threads $(BIN)/pytest -q $(NATIVE_TESTS) || exit 1; done

# All Triton kernels as compiled code, executed by tests/ptxemu for both architectures; half an hour.
# `make test` runs a part of it.
test-ptx: $(PTX_ARCHS:%=test-ptx-%)

$(PTX_ARCHS:%=test-ptx-%): test-ptx-%: $(INSTALLED)
	$(ptx_env) $(BIN)/python -m ptxemu.selftest --arch $* --mutations 3
	$(ptx_env) $(BIN)/python -m ptxemu.check --arch $*

compile-report: $(INSTALLED)
	$(BIN)/python bench/compile_report.py --out bench_out/triton-compile.json

# What the kernels of a forward pass execute, and all that is compared with it or made of it; after
# a change of the kernels. Minutes on one core.
kernel-counts: $(INSTALLED)
	$(BIN)/python bench/kernel_counts.py --out bench/results/triton-counts.json
	$(BIN)/python bench/compile_report.py --out bench/results/triton-compile.json
	$(BIN)/python bench/report.py --docs

mutants: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt mutmut
	$(BIN)/mutmut run
	$(BIN)/mutmut results

# Built without isolation, so that the build tools too are those of constraints.txt, and after torch,
# whose headers the compiled module needs.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(CXX_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel pybind11 ninja torch numpy
	$(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e ".[cli,model,eval,bench,peers,onnx,dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo_out bench_out runs mutants htmlcov .coverage
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f setok_kernels/_C*.so setok_kernels/_C_build_failed.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
