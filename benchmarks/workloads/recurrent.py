"""Small byte-level recurrent models: GRU and LSTM."""

from __future__ import annotations

from torch import Tensor, nn

from thermoopt.benchmarks.workloads.task import Workload
from thermoopt.benchmarks.workloads.text import ABOUT, byte_task, corpus

__all__ = ["GRU_TEXT", "LSTM_TEXT", "Recurrent"]


class Recurrent(nn.Module):
    """Embedding, one recurrent layer, head."""

    def __init__(self, layer: type[nn.GRU] | type[nn.LSTM], width: int = 64) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.rnn = layer(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits ``[batch, length, 256]`` of the next byte."""
        return self.head(self.rnn(self.bytes(idx))[0])


GRU_TEXT = Workload(
    "gru",
    f"{ABOUT}; embedding and GRU of width 64, context 32",
    (400, 1600),
    lambda seed, batch=1.0: byte_task(lambda: Recurrent(nn.GRU), 16, 32, seed, batch),
    lambda: corpus().sha256,
    family="recurrent",
    metric="nats per byte",
)
LSTM_TEXT = Workload(
    "lstm",
    f"{ABOUT}; embedding and LSTM of width 64, context 32",
    (400, 1600),
    lambda seed, batch=1.0: byte_task(lambda: Recurrent(nn.LSTM), 16, 32, seed, batch),
    lambda: corpus().sha256,
    family="recurrent",
    metric="nats per byte",
)
