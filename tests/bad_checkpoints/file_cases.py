"""Damage inside one .safetensors file: lengths, JSON, entries, offsets."""

from __future__ import annotations

from tests.bad_checkpoints.make_bad import HIDDEN, BadCheckpoint, bad

NORM = "model.norm.weight"
FIRST, SECOND = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"


@bad("the file has 5 bytes, too few for the 8-byte header length")
def file_of_five_bytes(model: BadCheckpoint) -> None:
    model.files["model.safetensors"] = b"\x10\0\0\0\0"
    model.stored = False


@bad("the header claims 1099511627776 bytes, expected 2 to")
def header_of_a_terabyte(model: BadCheckpoint) -> None:
    model.weights.header_length = 1 << 40


@bad("the header claims 18446744073709551615 bytes")
def header_length_minus_one(model: BadCheckpoint) -> None:
    model.weights.header_length = (1 << 64) - 1


@bad("the header claims 0 bytes, expected 2 to")
def header_length_zero(model: BadCheckpoint) -> None:
    model.weights.header_length = 0


@bad(r"\(header\): this is not valid JSON")
def header_not_json(model: BadCheckpoint) -> None:
    model.weights.header_text = b'{"model.norm.weight": oops}'


@bad(r"\(header\): this is not valid JSON \('utf-8' codec can't decode")
def header_not_utf8(model: BadCheckpoint) -> None:
    model.weights.header_text = b'{"\xff\xfe": {}}'


@bad(r"\(header\): expected a JSON object, got list")
def header_is_a_list(model: BadCheckpoint) -> None:
    model.weights.header_text = b'["dtype", "shape"]'


@bad('the key "model.norm.weight" appears twice')
def duplicate_tensor(model: BadCheckpoint) -> None:
    entry = b'"model.norm.weight": {"dtype": "BF16", "shape": [6], "data_offsets": [0, 12]}'
    model.weights.header_text = b"{" + entry + b", " + entry + b"}"


@bad("tensor model.norm.weight: an entry has exactly dtype, shape and data_offsets")
def entry_without_shape(model: BadCheckpoint) -> None:
    del model.entry(NORM)["shape"]


@bad("tensor model.norm.weight: an entry has exactly dtype, shape and data_offsets")
def entry_with_extra_key(model: BadCheckpoint) -> None:
    model.entry(NORM)["strides"] = [1]


@bad("__metadata__ must map strings to strings")
def metadata_of_numbers(model: BadCheckpoint) -> None:
    model.weights.header["__metadata__"] = {"version": 1}


@bad('tensor model.norm.weight: unknown dtype "BF17"')
def unknown_dtype(model: BadCheckpoint) -> None:
    model.entry(NORM)["dtype"] = "BF17"


@bad(r'tensor model.norm.weight: unknown dtype \["BF16"\]')
def dtype_is_a_list(model: BadCheckpoint) -> None:
    model.entry(NORM)["dtype"] = ["BF16"]


@bad(r"tensor model.norm.weight: shape \[-6\] is not a list of at most 8 sizes")
def negative_shape(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [-HIDDEN]


@bad(r"tensor model.norm.weight: shape \[true, 6\] is not a list")
def bool_shape(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [True, HIDDEN]


@bad(r"tensor model.norm.weight: shape \[6.0\] is not a list")
def float_shape(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [6.0]


@bad("tensor model.norm.weight: shape .* is not a list of at most 8 sizes")
def rank_of_nine(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [1] * 8 + [HIDDEN]


@bad("data_offsets span 12 bytes, but BF16 .* needs 36893488147419103232")
def dimensions_whose_product_overflows(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [1 << 32, 1 << 32]


@bad(r"tensor model.norm.weight: shape \[1000.* is not a list of at most 8 sizes")
def dimension_of_four_thousand_digits(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [10**4000, 10**4000]


@bad(r'a tensor is named "\\u001b\[2Jmodel", expected 1 to 512 printable characters')
def name_with_terminal_escapes(model: BadCheckpoint) -> None:
    model.weights.header["\x1b[2Jmodel"] = model.weights.header.pop(NORM)


@bad(r'a tensor is named "xxx.*\.\.\., expected 1 to 512 printable characters')
def name_of_a_thousand_characters(model: BadCheckpoint) -> None:
    model.weights.header["x" * 1000] = model.weights.header.pop(NORM)


@bad(r"tensor model.norm.weight: data_offsets span 12 bytes, but BF16 \[7\] needs 14")
def size_differs_from_shape(model: BadCheckpoint) -> None:
    model.entry(NORM)["shape"] = [HIDDEN + 1]


@bad(r"tensor model.norm.weight: data_offsets span 12 bytes, but F32 \[6\] needs 24")
def size_differs_from_dtype(model: BadCheckpoint) -> None:
    model.entry(NORM)["dtype"] = "F32"


@bad(r"tensor model.norm.weight: data_offsets \[-12, 0\] is not a pair of integers from 0")
def negative_offset(model: BadCheckpoint) -> None:
    model.entry(NORM)["data_offsets"] = [-12, 0]


@bad(r"tensor model.norm.weight: data_offsets \[0, 12, 24\] is not a pair")
def three_offsets(model: BadCheckpoint) -> None:
    model.entry(NORM)["data_offsets"] = [0, 12, 24]


@bad("tensor model.norm.weight: data_offsets span -12 bytes")
def offsets_reversed(model: BadCheckpoint) -> None:
    model.entry(NORM)["data_offsets"].reverse()


@bad("tensor model.norm.weight: its data ends at byte 10000000001233, but the file has 2181")
def offset_past_the_end(model: BadCheckpoint) -> None:
    model.entry(NORM)["data_offsets"] = [10**13 - 12, 10**13]


@bad("tensor lm_head.weight: its data ends at byte .*, but the file has")
def truncated(model: BadCheckpoint) -> None:
    del model.weights.data[-10:]


@bad("10 bytes after tensor lm_head.weight belong to no tensor")
def trailing_bytes(model: BadCheckpoint) -> None:
    model.weights.data += bytes(10)


@bad(
    "tensor model.norm.weight begins at byte .*, before tensor"
    " model.layers.0.input_layernorm.weight ends at .* overlap"
)
def overlapping_tensors(model: BadCheckpoint) -> None:
    model.entry(NORM)["data_offsets"] = list(model.entry(SECOND)["data_offsets"])


@bad(
    "12 bytes between tensor model.layers.0.mlp.down_proj.weight and tensor lm_head.weight belong"
    " to no tensor"
)
def hole_between_tensors(model: BadCheckpoint) -> None:
    del model.weights.header[NORM]


@bad("tensor model.embed_tokens.weight.* overlap|before tensor .* ends at .* they overlap")
def one_tensor_inside_another(model: BadCheckpoint) -> None:
    begin, _ = model.entry(FIRST)["data_offsets"]
    model.entry(SECOND)["data_offsets"] = [begin + 2, begin + 14]
