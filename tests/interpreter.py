"""A slow reference for steering: one row at a time, no padding, no cache, no lanes, plain torch hooks.

Where and how strongly an edit acts is worked out here position by position from the definitions in the documentation;
only the arithmetic of an operation (`item.edit`) is shared, and that has tests of its own with numbers by hand.
"""

import torch

from latentlens.access.generation.sampling import choose, row_key
from latentlens.values.rows import TokenRow
from latentlens.values.where import steered_positions


def factor(schedule, step, sentence):
    """g(step) as its docstring says, one number at a time."""
    if step < schedule.start or (schedule.stop is not None and step >= schedule.stop):
        return 0.0
    if (step - schedule.start) % schedule.every:
        return 0.0
    g = schedule.decay ** (step - schedule.start)
    if schedule.table is not None:
        g *= schedule.table[step] if step < len(schedule.table) else schedule.table[-1]
    if schedule.per_sentence is not None:
        g *= schedule.per_sentence[min(sentence, len(schedule.per_sentence) - 1)]
    return g


def sentence_of(row, position, ends):
    return sum(token in ends for token in row.ids[row.n_prompt : position]) if position > row.n_prompt else 0


class Interpreter:
    """Runs rows with prepared plans (single sites, raw units)."""

    def __init__(self, lm, special_ids=frozenset()):
        self.lm, self.special_ids = lm, special_ids

    def forward(self, row, plan, want=()):
        """Logits (n, vocab) of one row and the values at the wanted sites, after the edits."""
        handles, decided, tokenwise, found = [], {}, {}, {}
        n = len(row)

        def on(tap, act):
            def flat(states):
                return states.reshape(-1, states.shape[-1])

            def before(_m, args, kwargs):
                if args and torch.is_tensor(args[0]):
                    new = act(flat(args[0]))
                    return None if new is None else ((new.reshape(args[0].shape), *args[1:]), kwargs)
                key = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
                new = act(flat(kwargs[key]))
                return None if new is None else (args, {**kwargs, key: new.reshape(kwargs[key].shape)})

            def after(_m, _a, out):
                states = out if torch.is_tensor(out) else out[0]
                new = act(flat(states))
                if new is None:
                    return None
                new = new.reshape(states.shape)
                return new if torch.is_tensor(out) else (new, *out[1:])

            if tap.side == "in":
                handles.append(tap.module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(tap.module.register_forward_hook(after))

        conditions = {c for item in plan for c in getattr(item, "conditions", ())}
        for condition in sorted(conditions, key=lambda c: c.site.depth):

            def decide(states, condition=condition):
                prompt = row.cut(slice(0, row.n_prompt))
                if condition.latched:
                    at = list(steered_positions(condition.where, prompt))
                    decided[condition] = bool(condition.holds(states[at].float().mean(0, keepdim=True)))
                else:
                    tokenwise[condition] = condition.holds(states)

            on(self.lm.layout.tap(condition.site), decide)
        for item in plan:

            def change(states, item=item):
                new = states.clone()
                chosen = list(steered_positions(item.where, row))
                if not chosen:
                    return None
                edited = item.edit(states[chosen])
                if item.reads is not None:  # it decides once, on the mean of these positions of the prompt
                    at = list(steered_positions(item.reads, row.prompt))
                    seen = states[at].float().mean(0, keepdim=True).expand(len(chosen), -1)
                    edited = type(item).stacked([item])(states[chosen].float(), None, None, seen)
                for k, p in enumerate(chosen):
                    step = max(p - row.n_prompt + 1, 0)
                    g = factor(item.schedule, step, sentence_of(row, p, item.schedule.ends))
                    for condition in getattr(item, "conditions", ()):
                        g *= decided[condition] if condition.latched else bool(tokenwise[condition][p])
                    if g:
                        new[p] = edited[k] if g == 1 else states[p] + g * (edited[k] - states[p])
                return new

            on(self.lm.layout.tap(item.site), change)
        for site in want:
            on(self.lm.layout.tap(site), lambda states, site=site: found.__setitem__(site, states.clone()))
        try:
            with torch.no_grad():
                inputs = {"input_ids": torch.tensor([row.ids]), "use_cache": False}
                if self.lm.layout.accepts_position_ids:
                    inputs["position_ids"] = torch.arange(n)[None]
                logits = self.lm.model(**inputs).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits, found

    def generate(self, ids, plan, new, temperature=0.0, seed=0, sample=0):
        """Token ids that the definition of sampling and steering gives."""
        prompt = TokenRow.plain(tuple(ids), special_ids=self.special_ids)
        written = ()
        for step in range(new):
            row = prompt.continued(written, self.special_ids)
            logits, _ = self.forward(row, plan)
            key = torch.tensor([row_key(prompt.ids, seed, sample)])
            written += (int(choose(logits[-1:], temperature, key, torch.tensor([step]))),)
        return written
