"""redis-py's command methods over anyio: the only folder of streamq that opens connections.

Other folders use `Client`. This folder must not know queues, tasks or messages.
"""

from streamq.client.address import Address
from streamq.client.background_tasks import BackgroundTasks, OwnedGroup, Resources
from streamq.client.blocking_connection import BlockingConnection
from streamq.client.client import Client
from streamq.client.dial import Dial
from streamq.client.login import RefusedAddressError, RefusedDatabaseError
from streamq.client.owner import Owner, refuse_in_loading_process, scheduler
from streamq.client.pipeline import Pipeline
from streamq.client.resp_codec import Command, OutcomeUnknown, pack_one
from streamq.client.scripts import Script
from streamq.client.server_features import ServerFeatures
from streamq.client.subscriber import Subscriber

__all__ = [
    "Address",
    "BackgroundTasks",
    "BlockingConnection",
    "Client",
    "Command",
    "Dial",
    "OutcomeUnknown",
    "OwnedGroup",
    "Owner",
    "Pipeline",
    "RefusedAddressError",
    "RefusedDatabaseError",
    "Resources",
    "Script",
    "ServerFeatures",
    "Subscriber",
    "pack_one",
    "refuse_in_loading_process",
    "scheduler",
]
