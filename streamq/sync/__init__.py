"""streamq for programs without an event loop: Flask, Django, scripts, handlers in threads.

`broker` has `SyncBroker`, which runs the coroutines of the async code to their end over connections that block.
"""
