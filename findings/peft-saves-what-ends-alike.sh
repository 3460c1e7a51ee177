#!/usr/bin/env bash
# peft 0.21.2: modules_to_save=["head"] also unfreezes lm_head, and ["out"] raises, since lora_dropout ends with it.
#
# target_modules=["head"] means the module head, or any that is named so. One would guess that modules_to_save=["head"] does, too. Seen: it
# takes every module whose name ends with these letters: lm_head is copied, trained and saved along, layernorm with "norm". No message; what
# was meant to stay frozen learns. "out" meets the lora_dropout that LoRA itself puts into each layer, and raises TypeError. Upstream:
# huggingface/peft issues 1917 and 3755.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --no-compile --target "$tmp" transformers==5.24.0 psutil==7.2.2
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" peft==0.21.2 accelerate==1.15.0
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import peft
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lm_head, self.head = (torch.nn.Linear(8, 8) for _ in range(3))
        self.layernorm, self.norm = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)

    def forward(self, x):
        return self.head(self.norm(self.lm_head(self.layernorm(self.fc(x)))))


def trained(**options):
    model = peft.get_peft_model(Net(), peft.LoraConfig(**options))
    return {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}


print("torch", torch.__version__, "peft", peft.__version__)
seen = {name: trained(target_modules=["fc"], modules_to_save=[name]) for name in ("head", "norm")}
for name, layers in seen.items():
    print(f"modules_to_save=[{name!r}] trains {sorted(layers)}")
assert seen == {"head": {"fc", "head", "lm_head"}, "norm": {"fc", "norm", "layernorm"}}
assert trained(target_modules=["head"]) == {"head"}
try:
    trained(target_modules=["fc"], modules_to_save=["out"])
except TypeError as error:
    print(f"modules_to_save=['out']: TypeError: {error}")
else:
    raise AssertionError("no error")
PY
