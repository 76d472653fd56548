"""Grammars of answers: compiled by llguidance, as masks of tokens for each row of a step.

    Grammars (one for an engine) ── make ──► Constraint (one for a request)
       TokenBytes: what each token writes       │ next_step: masks and drafts of its next step
       answer_prefix: reasoning before it       │ commit: the tokens that the step gave

llguidance is optional: without it only a request with a grammar fails.
"""
