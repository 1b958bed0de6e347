"""Does bitsandbytes compute on this machine? The one file that imports it; loading goes through transformers."""

from __future__ import annotations


def nf4_fault() -> str | None:
    """Run one 4-bit layer on the accelerator, or on the CPU without one; return what went wrong, or None."""
    import torch

    try:
        from bitsandbytes.nn.modules import Linear4bit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
        states = torch.ones(1, 64, device=device)
        return None if layer(states).isfinite().all() else "a 4-bit layer gave values that are not finite"
    except Exception as error:  # whatever a broken build raises is the finding
        return f"{type(error).__name__}: {error}"
