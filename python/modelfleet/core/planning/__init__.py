"""From hardware, catalog, wishes and what is there: what a host is to hold, and where each model runs.

Decides, does nothing.

``host`` makes a plan, ``document`` is its form, ``budgets`` tells what memory
there is, ``needs`` what a model takes of it, ``placing`` where that fits,
``state`` what a store holds, ``settings`` what is allowed.
"""
