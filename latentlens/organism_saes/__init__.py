"""The SAEs that ship with the embedded model: how they are trained, and what they were found to carry.

    train     from the activation cache, in SAELens' format: `latentlens organism train-sae`
    concepts  the best latent of every planted concept, on texts that neither training nor choice used
    ablation  restarts under topic steering, with the off-topic latents ablated and with matched random ones
    card      both as tables in the SAEs' card: `latentlens organism evaluate-sae --card`

`organism.saes()` names them, `organism.sae_path(name)` is a folder for `ll.load_sae`.
"""
