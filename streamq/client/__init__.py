"""redis-py's command methods over anyio: the only part of streamq that knows connections.

`Client` is what the rest uses. It must not know queues, tasks or messages.
"""

from streamq.client.address import Address
from streamq.client.background_tasks import Shelter
from streamq.client.blocking_connection import BlockingConnection
from streamq.client.client import Client
from streamq.client.codec import Command, OutcomeUnknown, pack_one
from streamq.client.dial import Dial
from streamq.client.pipeline import Pipeline
from streamq.client.scripts import Script
from streamq.client.server_features import ServerFacts
from streamq.client.subscriber import Subscriber

__all__ = [
    "Address",
    "BlockingConnection",
    "Client",
    "Command",
    "Dial",
    "OutcomeUnknown",
    "Pipeline",
    "Script",
    "ServerFacts",
    "Shelter",
    "Subscriber",
    "pack_one",
]
