"""A short run of a workload."""

import torch


def train(task, lr, steps):
    """Train a task's model by AdamW at a constant learning rate, without decay."""
    optimizer = torch.optim.AdamW(task.model.parameters(), lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
