"""Good tasks beside each kind of poison: how much longer do they take, and is every task accounted for?

`python -m tests.poison --server valkey --backend asyncio` measures 3,000 good tasks without and with each
kind, in turn.
"""
