"""What the launchers of experts and linears refuse, and what they say: operation, change, words."""

from __future__ import annotations

from tests.plugins.launcher_calls import both, moved, sets, space, without

REFUSED_PRODUCTS = [
    ("moe", sets("x", dtype=1), r"x: got float32, expected bfloat16"),
    ("moe", sets("gate_up", dtype=2), r"gate_up: got int32, expected bfloat16"),
    ("moe_mxfp4", sets("down", dtype=0), r"down: got bfloat16, expected int32"),
    (
        "moe",
        sets("router_logits", shape_1=7),
        r"gate_up.shape\[0\] \(E\): got 6, expected 7 as in router_logits.shape\[1",
    ),
    (
        "moe",
        sets("gate_up", shape_2=95),
        r"gate_up.shape\[2\]: got 95 of 1 elements, expected H, 96",
    ),
    (
        "moe_nvfp4",
        sets("gate_up", shape_2=13),
        r"gate_up.shape\[2\]: got 13 of 8 elements, expected H, 96",
    ),
    (
        "moe",
        sets("down", shape_2=63),
        r"gate_up.shape\[1\] \(J\): got 128, expected 2I, 126",
    ),
    (
        "moe_mxfp4",
        both(
            sets("down", shape_2=7),
            sets("gate_up", shape_1=112),
            sets("gate_up_bias", shape_1=112),
        ),
        r"H and I: got 96 and 56, expected multiples of 32",
    ),
    (
        "moe",
        sets("down_bias", shape_0=5),
        r"down_bias.shape\[0\] \(E\): got 5, expected 6 as in router_logits.shape\[1\]",
    ),
    ("moe_mxfp4", without("gate_up_scale"), r"gate_up_scale: got null, expected a tensor"),
    ("moe_nvfp4", without("down_scale_2"), r"down_scale_2: got null, expected a tensor"),
    (
        "moe_mxfp4",
        sets("down_scale", shape_1=47),
        r"down_scale.shape\[1\]: got 47, expected 48, four block scales in each",
    ),
    (
        "moe_mxfp4",
        sets("options", weight_format=0),
        r"gate_up: got int32, expected bfloat16",
    ),
    (
        "moe_nvfp4",
        sets("options", weight_format=1),
        r"gate_up_scale_2: got a tensor, expected null: weight_format is not 2",
    ),
    (
        "moe_nvfp4",
        sets("options", weight_format=4),
        r"weight_format: got 4, expected 0 to 3",
    ),
    ("moe_fp8", sets("options", block_rows=64), r"block_rows: got 64, expected 1 or 128"),
    ("moe_mxfp4", sets("options", block_rows=1), r"block_rows: got 1, expected 0"),
    (
        "moe_fp8",
        sets("options", interleaved=1),
        r"interleaved: got 1, expected 0: weight_format is 3",
    ),
    (
        "moe_fp8",
        sets("options", block_rows=1),
        r"gate_up_scale.shape\[1\]: got 2, expected 128, a scale in each",
    ),
    (
        "moe_fp8",
        sets("down_scale", shape_1=2),
        r"down_scale.shape\[1\]: got 2, expected 1, a scale in each",
    ),
    ("linear", sets("weight", dtype=4), r"weight: got float8_e4m3, expected int32"),
    (
        "linear",
        sets("x", shape_1=264),
        r"x.shape\[1\] \(I\): got 264, expected a multiple of 16",
    ),
    (
        "linear",
        sets("weight", shape_1=67),
        r"weight.shape\[1\] \(W\): got 67 of 4 codes, expected I, 272",
    ),
    (
        "linear",
        sets("scales", shape_0=1),
        r"scales.shape\[0\] \(ceil\(O/128\)\): got 1, expected 2",
    ),
    (
        "linear",
        sets("scales", shape_1=2),
        r"scales.shape\[1\] \(ceil\(I/128\)\): got 2, expected 3",
    ),
    (
        "linear",
        sets("bias", shape_0=128),
        r"bias.shape\[0\] \(O\): got 128, expected 130 as in weight.shape\[0\]",
    ),
    ("linear", moved("weight", 4), r"weight: got an address 4 bytes behind a multiple of 16"),
    ("moe", sets("options", top_k=7), r"top_k: got 7, expected 1 to 6"),
    ("moe", sets("options", top_k=0), r"top_k: got 0, expected 1 to 6"),
    ("moe", without("options"), r"options: got null"),
    ("moe", space(100), r"workspace: got 100 bytes, expected at least \d+"),
    (
        "moe",
        moved("down", 8),
        r"down: got an address 8 bytes behind a multiple of 16, expected a multiple",
    ),
]
