"""The files of a classifier as the original's training script leaves them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PUBLISHED = """
import sys
import torch
from torch import nn


class MLPClassifier(nn.Module):
    def __init__(self, input_dim, hidden_dim, num_class):
        super().__init__()
        self.hidden_layer = nn.Linear(input_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.output_layer = nn.Linear(hidden_dim, num_class)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features):
        hidden = self.dropout(torch.relu(self.bn1(self.hidden_layer(features))))
        return torch.softmax(self.output_layer(hidden), dim=1)


torch.manual_seed(0)
model = MLPClassifier(20, 16, 2)
for _ in range(20):
    model(3 * torch.randn(32, 20) + 1)
model.eval()
torch.save(model, sys.argv[1] + "/500_model.pth")
features = torch.randn(50, 20)
with torch.no_grad():
    scores = model(features)
torch.save({"features": features, "scores": scores}, sys.argv[1] + "/expected.pt")
torch.save(model.state_dict(), sys.argv[1] + "/state.pt")
torch.save(nn.DataParallel(model).state_dict(), sys.argv[1] + "/parallel.pth")
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a training script leaves, its class defined in its `__main__`."""
    directory = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-c", PUBLISHED, directory], check=True)
    return directory
