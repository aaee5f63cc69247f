import torch

from eomt_d2.modeling.chunking import chunk_numel


def test_chunks_of_a_cpu_fit_its_cache():
    assert chunk_numel(torch.device("cpu")) * 4 == 4 * 1024**2
    assert chunk_numel(torch.device("cuda", 0)) * 4 == 64 * 1024**2
