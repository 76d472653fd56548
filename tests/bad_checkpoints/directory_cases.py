"""Damage among the files: missing shards, an index that lies, ways out, pickles, configs that are
none.
"""

from __future__ import annotations

from tests.bad_checkpoints.make_bad import INDEX, SHARDS, BadCheckpoint, bad

NORM = "model.norm.weight"


@bad("there is neither model.safetensors nor model.safetensors.index.json in it")
def no_weights(model: BadCheckpoint) -> None:
    model.stored = False


@bad(r"the weights are pickled \(\[.pytorch_model.bin.\]\), and reading a pickle can run code")
def pickle_only(model: BadCheckpoint) -> None:
    model.stored = False
    model.files["pytorch_model.bin"] = b"\x80\x02}q\x00."


@bad("both model.safetensors and model.safetensors.index.json are present")
def single_file_and_index(model: BadCheckpoint) -> None:
    model.put_index({NORM: "model.safetensors"})


@bad(
    "model-00002-of-00002.safetensors: this shard is missing; model.safetensors.index.json puts 6"
    " tensors into it"
)
def missing_shard(model: BadCheckpoint) -> None:
    model.put_index(model.shard())
    del model.files[SHARDS[1]]


@bad(r'this shard lacks \["model.extra.weight"\]')
def shard_lacks_a_listed_tensor(model: BadCheckpoint) -> None:
    model.put_index(model.shard() | {"model.extra.weight": SHARDS[0]})


@bad(r'this shard holds, unlisted, \["model.norm.weight"\]')
def shard_holds_an_unlisted_tensor(model: BadCheckpoint) -> None:
    weight_map = model.shard()
    del weight_map[NORM]
    model.put_index(weight_map)


@bad(r'"\.\./good/model\.safetensors" is no plain file name, and files elsewhere are not read')
def shard_outside_by_dots(model: BadCheckpoint) -> None:
    model.put_index(dict.fromkeys(model.shard(), "../good/model.safetensors"))


@bad('"/etc/hostname" is no plain file name')
def shard_outside_by_absolute_path(model: BadCheckpoint) -> None:
    model.put_index(dict.fromkeys(model.shard(), "/etc/hostname"))


@bad(r'"\.\." is no plain file name')
def shard_is_the_parent(model: BadCheckpoint) -> None:
    model.put_index(dict.fromkeys(model.shard(), ".."))


@bad("links to .*, outside the checkpoint's directory")
def shard_outside_by_link(model: BadCheckpoint) -> None:
    model.put_index(model.shard())
    del model.files[SHARDS[0]]
    model.links[SHARDS[0]] = "../file_of_five_bytes/config.json"  # of another case


@bad("model.safetensors links to .*, outside the checkpoint's directory")
def weights_outside_by_link(model: BadCheckpoint) -> None:
    model.stored = False
    model.links["model.safetensors"] = "/dev/null"


@bad("this is not a regular file, and weights are read from nothing else")
def shard_is_the_directory_itself(model: BadCheckpoint) -> None:
    model.put_index(model.shard())
    del model.files[SHARDS[0]]
    model.links[SHARDS[0]] = "."


@bad("this link leads nowhere")
def link_to_itself(model: BadCheckpoint) -> None:
    model.put_index(model.shard())
    del model.files[SHARDS[0]]
    model.links[SHARDS[0]] = SHARDS[0]


@bad(r'"\\ud800.safetensors" is no plain file name')
def shard_named_by_half_a_character(model: BadCheckpoint) -> None:
    model.put_index(dict.fromkeys(model.shard(), "\ud800.safetensors"))


@bad("weight_map must map tensor names to file names")
def index_maps_to_numbers(model: BadCheckpoint) -> None:
    model.put_index(dict.fromkeys(model.shard(), 1))


@bad("weight_map must map tensor names to file names")
def index_without_map(model: BadCheckpoint) -> None:
    model.shard()
    model.files[INDEX] = b"{}"


@bad("model.safetensors.index.json: this is not valid JSON")
def index_not_json(model: BadCheckpoint) -> None:
    model.shard()
    model.files[INDEX] = b"weight_map: none"


@bad("config.json: this is not valid JSON")
def config_not_json(model: BadCheckpoint) -> None:
    model.files["config.json"] = b"{'architectures': ['LlamaForCausalLM']}"


@bad('config.json: the key "hidden_size" appears twice')
def config_with_duplicate_key(model: BadCheckpoint) -> None:
    model.files["config.json"] = b'{"hidden_size": 6, "hidden_size": 7}'


@bad("num_hidden_layers is 1000000000000, expected at least 1 and at most 1024")
def config_with_a_trillion_layers(model: BadCheckpoint) -> None:
    model.config["num_hidden_layers"] = 10**12


@bad("vocab_size is 1099511627776, expected at least 2 and at most 16777216")
def config_with_a_giant_vocabulary(model: BadCheckpoint) -> None:
    model.config["vocab_size"] = 1 << 40


@bad("hidden_size is true, expected an integer")
def config_with_bool_size(model: BadCheckpoint) -> None:
    model.config["hidden_size"] = True


@bad(
    r"q_proj.weight is BF16, not FP8, and has no scales, nor have 7 more linears: the"
    r" description may be left over"
)
def quantized_target(model: BadCheckpoint) -> None:
    model.files["hf_quant_config.json"] = b'{"quantization": {"quant_algo": "FP8"}}'


@bad(
    r"q_proj.weight is BF16, not NVFP4, and has no scales, nor have 6 more linears",
    base="drafter",
)
def quantized_drafter(model: BadCheckpoint) -> None:
    model.files["hf_quant_config.json"] = b'{"quantization": {"quant_algo": "NVFP4"}}'


@bad("mask_embedding.pt shows a drafter of the variant 'MiMo'", base="drafter")
def mimo_drafter(model: BadCheckpoint) -> None:
    model.files["mask_embedding.pt"] = b""
