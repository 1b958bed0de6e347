"""SAE edits as plans: in files, in sweeps, recorded while writing."""

import pytest
import torch
from families import build
from sae_kinds import make

import latentlens as ll
from latentlens.errors import BadInput

ROWS = [[5, 6, 7, 8, 9, 10, 11], [30, 31, 32], [20, 21, 22, 23, 24]]


@pytest.fixture(scope="module")
def lm():
    return ll.load(build("Llama"), cache=False)


def test_sae_edits_survive_their_file_and_need_their_sae(tmp_path):
    sae = make(site="resid_post[1]")
    plan = [
        ll.EditLatents(sae, add={1: 2.0}, clamp={2: 0.0}, where="response"),
        ll.Gate(ll.ablate(sae, [3]), condition()),
    ]
    path = ll.save_plan(plan, tmp_path / "plan")
    assert [item.fingerprint for item in ll.load_plan(path, saes=[sae])] == [item.fingerprint for item in plan]
    with pytest.raises(BadInput, match="saes="):
        ll.load_plan(path)


def condition():
    return ll.Condition(ll.Direction(torch.randn(6, generator=torch.Generator().manual_seed(0)), "resid_post[0]"))


def test_latents_recorded_while_writing_are_those_of_the_recorded_states(lm):
    sae = make(d_in=32, site="resid_post[1]")
    edit = ll.EditLatents(sae, add={0: 3.0})
    record = ll.Record("resid_post[1]", where="all", sae=sae, latents=(0, 3, 5))
    runs = lm.generate(ROWS, 5, steer=edit, stop_ids=(), record=record)
    states, codes = runs.readings["after"]["resid_post[1]"], runs.readings["latents"]["resid_post[1]"]
    torch.testing.assert_close(codes, sae.encode(states, [0, 3, 5]), atol=1e-5, rtol=1e-4)
