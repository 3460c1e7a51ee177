#!/usr/bin/env bash
# triton 3.7.1: its interpreter cuts float32 down to bfloat16 where every device rounds to the nearest.
#
# TRITON_INTERPRET=1 is there to run kernels on a CPU as they would run on a device. One would guess that storing float32
# in bfloat16, or `.to(tl.bfloat16, fp_downcast_rounding="rtne")`, gives in both the nearest bfloat16. Seen: the interpreter
# drops the last 16 bits, so about half of all numbers are one unit nearer to 0, whatever rounding is asked for; compiled
# for a device the same line is cvt.rn.bf16. An optimizer with bfloat16 weights then shrinks them a unit a step, and tests
# of it under the interpreter see an error that no device makes.
#
# Exits non-zero if the interpreter rounds to the nearest.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-deps --target "$tmp" triton==3.7.1
cat > "$tmp/cut.py" <<'PY'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x, out, asked, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(x + i)
    tl.store(out + i, value)
    tl.store(asked + i, value.to(tl.bfloat16, fp_downcast_rounding="rtne"))


x = torch.tensor([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-9, -1.0 - 3 * 2**-9])  # bfloat16 has steps of 2**-7 there
nearest = x.to(torch.bfloat16)
out, asked = torch.empty_like(nearest), torch.empty_like(nearest)
kernel[(1,)](x, out, asked, N=4)
print("float32", x.tolist())
print("nearest", nearest.tolist())
print("stored ", out.tolist())
print("asked  ", asked.tolist())
cut = torch.tensor([1.0, 1.0, 1.0, -1.0])
sys.exit(not (torch.equal(out.float(), cut) and torch.equal(asked.float(), cut) and not torch.equal(out, nearest)))
PY
TRITON_INTERPRET=1 PYTHONPATH="$tmp" "$python" "$tmp/cut.py"
echo "as stated"
