"""Who may ask, how much, and whose turn it is.

``api_keys`` says who somebody is, ``quotas`` how much they may take, ``fair_queue`` and ``kv_ledger`` whose answer
begins next; all of them pure. ``callers`` and ``admission`` hold their state in the daemon's loop.
"""
