#!/usr/bin/env bash
# triton 3.2.0 (the one of torch 2.6): its interpreter cannot negate a mask that the compiler negates.
#
# TRITON_INTERPRET=1 is there to run kernels on a CPU as they would run on a device. One would guess that `~mask`, the
# negation of a comparison, works in both. Seen: the interpreter raises InterpreterError: AttributeError
# 'InterpreterBuilder' object has no attribute 'get_int1_ty'. In triton 3.7.1 the same kernel gives the right numbers.
# A kernel for both writes the comparison the other way round, or tl.where(mask, b, a).
#
# Exits non-zero if 3.2.0 takes the kernel, or 3.7.1 does not.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
mkdir "$tmp/torch"
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp/torch" torch==2.13.0 numpy
for version in 3.2.0 3.7.1; do
    "$python" -m pip install --quiet --no-deps --target "$tmp/$version" triton==$version
done
cat > "$tmp/negate.py" <<'PY'
import sys

import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def kernel(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(x + i)
    small = value < 2.0
    tl.store(out + i, tl.where(~small, value, 0.0))


x, out = torch.arange(4.0), torch.zeros(4)
try:
    kernel[(1,)](x, out, N=4)
    seen = str(out.tolist())
except InterpreterError as error:
    seen = "no attribute 'get_int1_ty'" if "get_int1_ty" in str(error) else str(error)
print(f"triton {triton.__version__}: {seen}")
sys.exit(seen != {"3.2.0": "no attribute 'get_int1_ty'", "3.7.1": "[0.0, 0.0, 2.0, 3.0]"}[triton.__version__])
PY
for version in 3.2.0 3.7.1; do
    TRITON_INTERPRET=1 PYTHONPATH="$tmp/$version:$tmp/torch" "$python" "$tmp/negate.py"
done
echo "as stated"
