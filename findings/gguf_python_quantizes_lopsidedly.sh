#!/usr/bin/env bash
# gguf 0.19.0, quantize and dequantize in Python.
#
# Seen: in a Q4_0 block of one -1.0 and thirty-one 1.0, -1.0 comes back exactly and each 1.0 as 0.875: the scale is taken
# from the value of greatest magnitude, sign included, and eight levels lie below zero but seven above. Q5_0 gives 0.9375.
# F16 turns 70000 into inf without an error; a Q8_0 block of 1000.0 and 0.001 gives 0.0 for the small one.
# Q4_K, Q6_K, Q2_K and IQ4_XS can be read (dequantized) but not written: NotImplementedError. The reader's .shape is the
# reverse of .data.shape.
# From memory one would say: 4-bit quantization is symmetric about zero, what can be read can be written, and a tensor has
# one shape.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize


def returned(values, kind):
    return dequantize(quantize(np.array([values], np.float32), kind), kind)[0]


lopsided = {kind.name: returned([-1.0] + [1.0] * 31, kind)[:2].tolist() for kind in (Type.Q4_0, Type.Q5_0)}
overflow, small = returned([70000.0] * 32, Type.F16)[0], returned([0.001] * 31 + [1000.0], Type.Q8_0)[0]
print(lopsided, overflow, small)
assert lopsided == {"Q4_0": [-1.0, 0.875], "Q5_0": [-1.0, 0.9375]} and np.isinf(overflow) and small == 0

unwritable = []
for kind in (Type.Q4_K, Type.Q6_K, Type.Q2_K, Type.IQ4_XS):
    try:
        quantize(np.zeros((1, 256), np.float32), kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        dequantize(np.zeros((1, size), np.uint8), kind)
        unwritable.append(kind.name)
print("read but not written:", unwritable)
assert unwritable == ["Q4_K", "Q6_K", "Q2_K", "IQ4_XS"]

path = f"{tempfile.mkdtemp()}/x.gguf"
writer = gguf.GGUFWriter(path, "llama")
writer.add_tensor("a", np.zeros((2, 3), np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
(tensor,) = gguf.GGUFReader(path).tensors
print("shape", tensor.shape.tolist(), "data", tensor.data.shape)
assert tensor.shape.tolist() == [3, 2] and tensor.data.shape == (2, 3)
PYTHON
