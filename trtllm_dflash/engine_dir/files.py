"""The names of the files in an engine directory."""

CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
ENGINE_FILE = "rank0.engine"  # of a GPU engine
MODEL_FILE = "model.onnx"  # of a CPU engine
WEIGHTS_FILE = "rank0.safetensors"  # of a CPU engine
TOKENIZER_FILE = "tokenizer.json"
LOG_FILE = "build.log"

# By backend, what an engine directory must hold and its manifest must list.
ENGINE_FILES = {
    "onnxruntime": (CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE),
    "tensorrt_rtx": (CONFIG_FILE, ENGINE_FILE),
    "tensorrt": (CONFIG_FILE, ENGINE_FILE),
}
