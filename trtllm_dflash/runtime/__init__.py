"""Running an engine directory.

engine.py          `Engine`, the Python API
scheduler.py       which request takes which slot, and which step comes next
engine_thread.py   requests from many threads, for servers
sessions/          one engine step: on ONNX Runtime, TensorRT or TensorRT-RTX
text/              tokenizer, incremental detokenizer, stop words
"""
