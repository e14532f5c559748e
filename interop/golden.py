"""Writes the small files, made by the PyPI packages `gguf` and `safetensors`, which the default tests read.

    python interop/golden.py      # with gguf, safetensors and numpy installed
"""

import pathlib

import gguf
import numpy as np
import safetensors.numpy
from gguf import GGMLQuantizationType as Type
from gguf import quants

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = ROOT / "crates/trit/tests/golden"
FILES = ROOT / "crates/files/tests/golden"

MADE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
# The package reads these and does not write them: (name, bytes of a block, where its fp16 numbers are).
READ = [("Q4_K", 144, [0, 2]), ("Q5_K", 176, [0, 2]), ("Q6_K", 210, [208])]


def blocks():
    """For each format NAME.bytes and the weights they stand for, NAME.f32."""
    random = np.random.default_rng(7)
    weights = random.standard_normal((4, 256)).astype(np.float32) * 0.07
    weights[1] = np.round(weights[1] / 0.07).clip(-1, 1) * 0.03125  # ternary with a scale of fp16
    for name in MADE:
        data = quants.quantize(weights, Type[name])
        save(name, data, quants.dequantize(data, Type[name]))
    for name, size, halves in READ:
        data = random.integers(0, 256, (4, size), dtype=np.uint8)
        for at in halves:
            scale = random.uniform(0.001, 0.02, 4).astype(np.float16)
            data[:, at : at + 2] = scale.view(np.uint8).reshape(4, 2)
        save(name, data, quants.dequantize(data, Type[name]))


def save(name, data, weights):
    (BLOCKS / f"{name}.bytes").write_bytes(np.ascontiguousarray(data).tobytes())
    (BLOCKS / f"{name}.f32").write_bytes(np.ascontiguousarray(weights, dtype="<f4").tobytes())


def file():
    """golden.gguf: metadata of every type, and a tensor of every format that the package writes."""
    writer = gguf.GGUFWriter(FILES / "golden.gguf", "llama")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float32("test.f32", 1e-5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.text", "wörter 日本 🙂")
    writer.add_block_count(2)
    writer.add_token_list(["<|endoftext|>", "a", "Ġb", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_scores([0.0, -1.0, -2.5, -3.0])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    weights = np.random.default_rng(9).standard_normal((2, 256)).astype(np.float32)
    writer.add_tensor("plain", weights[:, :5].copy())
    for name in MADE:
        data = quants.quantize(weights, Type[name])
        writer.add_tensor(f"blk.0.{name}.weight", data, raw_dtype=Type[name])
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors():
    """golden.safetensors: a tensor of every type that we read and NumPy has."""
    count = np.arange(6).reshape(2, 3)
    named = {f"a.{np.dtype(of).name}": (count * 20).astype(of) for of in ["f4", "f2", "i1", "u1", "u4"]}
    safetensors.numpy.save_file(named, FILES / "golden.safetensors", {"format": "np"})


if __name__ == "__main__":
    blocks()
    file()
    tensors()
