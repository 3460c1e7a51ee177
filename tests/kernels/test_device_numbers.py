"""Numbers on a device whose captures record copies and do not execute them; a stand-in on CPU."""

import numpy as np
import pytest
import torch

from thermoopt.kernels.triton_tables import DeviceNumbers


class Graph:
    """A capture: copies to the table are noted while it lasts and carried out by each replay."""

    def __init__(self):
        self.capturing, self.copies = False, []

    def __enter__(self):
        self.capturing = True
        return self

    def __exit__(self, *exc):
        self.capturing = False

    def replay(self, table):
        for source in self.copies:
            table.data.copy_(source.data)


class Table(torch.Tensor):
    """The numbers on the device."""

    graph = None

    def copy_(self, source, non_blocking=False):
        if Table.graph is not None and Table.graph.capturing:
            Table.graph.copies.append(source)
            return self
        return super().copy_(source)


@pytest.fixture
def numbers(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_current_stream_capturing", lambda: Table.graph is not None and Table.graph.capturing
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self.clone())
    monkeypatch.setattr(Table, "graph", None)

    def set_aside(self):
        if self._spare is None:
            self._spare = torch.empty(self.tensor.shape, dtype=self.tensor.dtype)

    monkeypatch.setattr(DeviceNumbers, "_set_aside", set_aside)
    made = DeviceNumbers(2, torch.float64, torch.device("cpu"), baked=False)
    made.tensor = made.tensor.as_subclass(Table)
    made._cuda = True
    made._set_aside()
    return made


def captured(numbers, values):
    Table.graph = graph = Graph()
    with graph:
        numbers.send(np.array(values))
    return graph


def test_what_a_capture_recorded_is_sent_before_a_step_without_a_replay(numbers):
    numbers.send(np.array([1.0, 2.0]))
    captured(numbers, [3.0, 4.0])
    assert numbers.tensor.tolist() == [1.0, 2.0]  # recorded, not copied
    numbers.send(np.array([3.0, 4.0]))
    assert numbers.tensor.tolist() == [3.0, 4.0]


def test_an_earlier_graph_replays_what_was_sent_last(numbers):
    numbers.send(np.array([1.0, 2.0]))
    first = captured(numbers, [3.0, 4.0])
    numbers.send(np.array([5.0, 6.0]))
    second = captured(numbers, [7.0, 8.0])
    numbers.send(np.array([7.0, 8.0]))  # what the second capture had: before a replay
    for graph in (first, second):
        graph.replay(numbers.tensor)
        assert numbers.tensor.tolist() == [7.0, 8.0]


def test_nothing_is_sent_twice(numbers, monkeypatch):
    numbers.send(np.array([1.0, 2.0]))
    captured(numbers, [3.0, 4.0])
    numbers.send(np.array([3.0, 4.0]))
    monkeypatch.setattr(Table, "copy_", lambda *args, **kwargs: pytest.fail("sent again"))
    numbers.send(np.array([3.0, 4.0]))
