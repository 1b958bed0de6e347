"""Parts of experiments that need both wings: something is fitted, and a running model says what it does.

    concepts     estimators of directions and methods that run the model, fitted to one concept; the block to steer at
    styles       G-ACT, ACT, neurons and the mean difference, fitted to every style of a list of tasks
    traits       traits of personas with who judges them: by rule, by a model, by a server
    training     a short training on answers, steered or not meanwhile

The scripts in `steering/` run them. The protocol of steering resistance has a room of its own, `resistance/`.
"""
