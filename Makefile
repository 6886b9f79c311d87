# make demo   the whole line on real data, about 25 minutes on two cores, ends with runs/demo/report.html
# make test   lint, types and tests, about 20 minutes on two cores
# make bench  layers of neurons beside those of other libraries, a quarter of an hour
# All set up their own environment in .venv on first use; only Python >= 3.11 with pip is needed.

PYTHON ?= python3
PYTHON310 ?= 3.10
UV := .tools/bin/uv
VENV := .venv
BIN := $(VENV)/bin

# Set in many images: every process would compile torch's sources anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all lint format lock wheel bench clean

setup: $(VENV)/.ready

$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools uv

$(VENV)/.ready: requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python ">=3.11" $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/ashnets demo

# Two tests at a time, each on one thread; a file's tests stay together, since they share what takes long to make.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint
	$(PYTEST)

test-all: lint .stock-lava/.ready .peers/.ready
	$(PYTEST) -m "slow or not slow"

# Lava as it was released, with Python 3.10 (a version or a path) and the packages that it pins: ours is compared with it.
# --no-config: what pyproject.toml overrides in those pins is for our own environment.
.stock-lava/.ready: | $(UV)
	$(UV) venv --quiet --allow-existing --python "$(PYTHON310)" .stock-lava
	$(UV) pip install --no-config --quiet --python .stock-lava/bin/python lava-dl==0.6.0 lava-nc==0.10.0 "setuptools<81" pyzmq safetensors
	touch $@

# Other libraries of spiking networks, each in an environment of its own: they are timed beside ours, and three of them
# run the NIR file that ours writes.
NIR := nir==1.0.8 nirtorch==2.6
.peers/.ready: | $(UV)
	for peer in "spikingjelly==2.0.0 $(NIR)" "snntorch==1.0.0 $(NIR)" "norse==1.1.0 $(NIR)" sinabs==3.1.3; do \
	  $(UV) venv --quiet --allow-existing --python ">=3.11" .peers/$${peer%%=*} && \
	  $(UV) pip install --no-config --quiet --python .peers/$${peer%%=*}/bin/python $$peer torch==2.15.0 || exit 1; \
	done
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup .peers/.ready
	$(BIN)/python -m benchmarks.lif

lock: | $(UV)
	$(UV) pip compile --quiet pyproject.toml --group dev --universal --generate-hashes --no-annotate \
	  --output-file requirements.lock

wheel: | $(UV)
	$(UV) build --quiet --wheel --out-dir dist

clean:
	rm -rf $(VENV) .stock-lava .peers .tools dist
