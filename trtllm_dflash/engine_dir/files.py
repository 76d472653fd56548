"""The names of the files in an engine directory."""

CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
ENGINE_FILE = "rank0.engine"  # of a GPU engine
MODEL_FILE = "model.onnx"  # of a CPU engine
WEIGHTS_FILE = "rank0.safetensors"  # of a CPU engine
TOKENIZER_FILE = "tokenizer.json"
LOG_FILE = "build.log"
