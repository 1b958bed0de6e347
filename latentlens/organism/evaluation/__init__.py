"""What the embedded model was made to show, measured: one file for each family, one for steering.

Each file has functions that take a `Readout` and return rows. Shares carry Wilson intervals over texts, AUROCs
bootstrap intervals over groups; neither covers the variance between training runs. Whatever is tuned (a block, a
strength) is tuned on texts of another seed than those it is measured on.
"""
