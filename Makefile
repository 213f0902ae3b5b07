PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp)

.PHONY: demo test lint format bench mutants clean

demo: $(INSTALLED)
	$(BIN)/python bench/demo.py --out demo_out

test: $(INSTALLED)
	$(BIN)/pytest -q -m "not gpu" --cov=setok_kernels --cov-fail-under=95

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(INSTALLED)
	$(BIN)/python bench/run.py --out bench_out/run.json

mutants: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt mutmut
	$(BIN)/mutmut run
	$(BIN)/mutmut results

# Built without isolation, so that the build tools too are those of constraints.txt, and after torch,
# whose headers the compiled module needs.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(CXX_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel pybind11 ninja torch numpy
	$(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e ".[cli,model,dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info demo_out bench_out mutants htmlcov .coverage
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f setok_kernels/_C*.so setok_kernels/_C_build_failed.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
