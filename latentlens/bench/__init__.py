"""Steering methods side by side: every method fitted to the same texts, with what only a running model can tell.

    concepts     estimators of directions and methods that run the model, fitted to one concept; the block to steer at
    styles       G-ACT, ACT, neurons and the mean difference, fitted to every style of a list of tasks

`steering/method_bench.py` and `steering/gact.py` run all of it.
"""
