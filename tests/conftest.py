"""Shared by all tests: one thread, no hub, a private cache folder, and two small models."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("LATENTLENS_CACHE", str(tmp_path / "default-cache"))


@pytest.fixture
def llama():
    from families import build

    return copy.deepcopy(build("Llama"))


@pytest.fixture
def gpt2():
    from families import build

    return copy.deepcopy(build("GPT-2"))


@pytest.fixture(scope="session")
def organism():
    import latentlens as ll

    return ll.load(cache=False)
