# Each target sets up .venv by itself when it is missing or older than what it is made from.
# Readers without a GPU on Linux save gigabytes with the CPU build of PyTorch:
#   make lab PIP_EXTRA="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON    ?= python3
PIP_EXTRA ?=
CHAPTER   ?=
# Processes that test side by side, each with one thread; a lesson takes up to 1 GiB.
WORKERS   ?= 2

READY := .venv/ready
BIN   := .venv/bin

.PHONY: help lab test check run

help:
	@echo "make lab     open the course in JupyterLab (sets everything up the first time)"
	@echo "make test    run every check of the course: library, notebooks, exercises, drift"
	@echo "make check   only look whether generated files are up to date (seconds)"
	@echo "make run     run the lessons without a browser, with a progress bar"
	@echo
	@echo "CHAPTER=6_bilinear_sampling narrows lab, test and run to a chapter;"
	@echo "CHAPTER=6_bilinear_sampling/2_warps to a lesson."

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_EXTRA) -c constraints.txt -e '.[dev,video,molecules]'
	@touch $(READY)

lab: $(READY)
	$(BIN)/fourfold lab $(CHAPTER)

# Without CHAPTER pytest takes its own list of places (pyproject.toml); with one, the lessons of the
# chapter, its library and tests, and the checks of every lesson's form.
PACKAGE := $(shell echo '$(CHAPTER)' | sed 's|/.*||; s|^[0-9]*_||')
PLACES  := $(if $(CHAPTER),$(wildcard chapters/$(CHAPTER) chapters/$(CHAPTER).ipynb lib/fourfold/$(PACKAGE) tests/$(PACKAGE)) tests/course/test_lessons.py)
test: $(READY)
	$(if $(and $(CHAPTER),$(if $(wildcard chapters/$(CHAPTER) chapters/$(CHAPTER).ipynb),,x)),$(error CHAPTER: there is no chapters/$(CHAPTER)))
	MPLBACKEND=Agg OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PLACES)

check: $(READY)
	$(BIN)/fourfold build --check

run: $(READY)
	$(BIN)/fourfold run $(CHAPTER)
