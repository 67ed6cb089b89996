"""Tasks are sent when the transaction of Django or SQLAlchemy has committed, and only then."""

from __future__ import annotations

import logging
import subprocess
import sys
from contextlib import contextmanager

import anyio
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from streamq import SyncBroker, WorkflowState, task
from streamq.errors import ArgumentsError, BrokerError, BrokerUnavailableError, ConfigurationError, SyncCallError
from streamq.middleware import MiddlewareChain
from tests.servers import fresh_server

pytestmark = pytest.mark.timeout(60)


@task
def mail(order: int) -> None: ...


@task
def anything(value) -> None: ...


@pytest.fixture
def broker():
    with SyncBroker("memory://") as broker:
        yield broker


def sent(broker: SyncBroker) -> list[int]:
    """Return the orders whose mails were sent."""
    letters = broker.client.call([("XRANGE", broker.keys.tiers[1].stream, "-", "+")])[0]
    return [int(dict(zip(flat[::2], flat[1::2], strict=True))[b"args"].strip(b"[]")) for _, flat in letters]


class FailedError(Exception):
    """What makes a transaction roll back."""


@contextmanager
def failing(scope):
    """Enter a scope that is left with an error at the end of the block."""
    with pytest.raises(FailedError), scope:  # noqa: PT012 - the scope is to see it
        yield
        raise FailedError


# --- SQLAlchemy -----------------------------------------------------------------------------------


@pytest.fixture
def engine():
    """SQLite in memory, with savepoints that work."""
    engine = create_engine("sqlite://")
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with engine.begin() as connection:
        connection.execute(text("create table orders (id int)"))
    yield engine
    engine.dispose()


def insert(session, order: int) -> None:
    session.execute(text("insert into orders values (:id)"), {"id": order})


def test_a_commit_sends_and_a_rollback_does_not(broker, engine):
    """Each transaction of one session for itself; a close without a commit is a rollback."""
    with Session(engine) as session:
        later = broker.on_session_commit(session)
        insert(session, 1)
        later.enqueue(mail, 1)
        later.enqueue_many([mail.call(2), mail.call(3)])
        assert sent(broker) == []
        session.commit()
        assert sent(broker) == [1, 2, 3]
        insert(session, 4)
        later.enqueue(mail, 4)
        session.rollback()
        session.commit()
        insert(session, 5)
        later.enqueue(mail, 5)
        session.close()
        session.commit()
        assert sent(broker) == [1, 2, 3]
        later.enqueue(mail, 6)
        session.commit()
        session.commit()
        assert sent(broker) == [1, 2, 3, 6]


def test_what_was_registered_before_any_work_belongs_to_the_transaction(broker, engine):
    """A rollback before the first statement is one, too."""
    with Session(engine) as session:
        broker.on_session_commit(session).enqueue(mail, 1)
        session.rollback()
        session.commit()
        assert sent(broker) == []
    with Session(engine) as session, failing(session.begin()):
        broker.on_session_commit(session).enqueue(mail, 2)
    with Session(engine) as session, session.begin():
        broker.on_session_commit(session).enqueue(mail, 3)
    assert sent(broker) == [3]


def test_a_savepoint_that_is_rolled_back_takes_its_tasks_with_it(broker, engine):
    """One that is released, and the transaction around it, keep theirs."""
    with Session(engine) as session:
        later = broker.on_session_commit(session)
        insert(session, 1)
        later.enqueue(mail, 1)
        with session.begin_nested():
            later.enqueue(mail, 2)
            with failing(session.begin_nested()):
                insert(session, 3)
                later.enqueue(mail, 3)
            assert sent(broker) == []
        with failing(session.begin_nested()):
            with session.begin_nested():
                later.enqueue(mail, 4)
            later.enqueue(mail, 5)
        session.flush()
        session.commit()
        assert sent(broker) == [1, 2]
        assert session.execute(text("select count(*) from orders")).scalar() == 1


def test_released_savepoints_share_the_fate_of_the_outermost_transaction(broker, engine):
    """Nothing is sent when that is rolled back."""
    with Session(engine) as session:
        later = broker.on_session_commit(session)
        insert(session, 1)
        with session.begin_nested():
            later.enqueue(mail, 1)
        session.rollback()
        session.commit()
        assert sent(broker) == []


def test_a_scoped_session_is_that_of_its_thread(broker, engine):
    """As flask-sqlalchemy's `db.session` is one."""
    scoped = scoped_session(sessionmaker(engine))
    broker.on_session_commit(scoped).enqueue(mail, 1)
    scoped.commit()
    broker.on_session_commit(scoped).enqueue(mail, 2)
    scoped.remove()
    assert sent(broker) == [1]


def test_an_error_of_sending_comes_out_of_the_commit_and_harms_no_session(engine):
    """The data are committed; the next transaction works."""
    with fresh_server("valkey") as server, SyncBroker(server.url, connect_timeout=0.2) as broker:
        broker.client.ping()
        with Session(engine) as session:
            insert(session, 1)
            broker.on_session_commit(session).enqueue(mail, 1)
            server.kill()
            with pytest.raises(BrokerUnavailableError):
                session.commit()
            assert session.execute(text("select count(*) from orders")).scalar() == 1
            session.commit()


def test_a_workflow_starts_after_the_commit(broker, engine):
    """And not after a rollback; one that cannot be started is an error at once."""
    with Session(engine) as session:
        later = broker.on_session_commit(session)
        later.start(mail.call(1).then(mail.call(2)), workflow_id="first")
        later.enqueue(mail, 3)
        assert sent(broker) == []
        session.commit()
        assert sorted(sent(broker)) == [1, 3]  # its second step is sent by a worker
        assert broker.workflow("first").status().state is WorkflowState.RUNNING
        later.start(mail.call(4))
        session.rollback()
        session.commit()
        with pytest.raises(ConfigurationError, match="cannot be started"):
            later.start("mail")
        with pytest.raises(ArgumentsError):
            later.start(mail.call("no number"))
        session.commit()
    assert sorted(sent(broker)) == [1, 3]


def test_one_that_the_server_refuses_keeps_no_other_from_being_sent(broker, engine):
    """The data are committed: `commit` raises the first error when all were tried."""
    wrong = broker.keys.tiers[0].stream
    broker.client.command("SET", wrong, "no stream")
    with Session(engine) as session, SyncBroker("memory://") as other:
        other.client.command("SET", other.keys.tiers[1].stream, "no stream")
        other_later, later = other.on_session_commit(session), broker.on_session_commit(session)
        other_later.enqueue(mail, 0)
        later.start(mail.options(tier="critical").call(1))
        later.start(mail.call(2))
        later.enqueue(mail, 3)
        insert(session, 1)
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            session.commit()
        assert session.execute(text("select count(*) from orders")).scalar() == 1
    assert sorted(sent(broker)) == [2, 3]


def test_the_arguments_are_those_of_the_call(broker, engine):
    """A list or a dict that changes until the commit is sent as it was, annotated or not."""
    with Session(engine) as session, session.begin():
        numbers, loose = [1], {"order": 1}
        broker.on_session_commit(session).enqueue(anything, loose)
        broker.on_session_commit(session).start(anything.call(numbers))
        numbers.append("no number")
        loose["order"] = object()
    letters = broker.client.call([("XRANGE", broker.keys.tiers[1].stream, "-", "+")])[0]
    assert {dict(zip(flat[::2], flat[1::2], strict=True))[b"args"] for _, flat in letters} == {
        b'[{"order":1}]',
        b"[[1]]",
    }


def test_a_middleware_that_refuses_one_keeps_no_other_from_being_sent(engine):
    class Deny:
        async def enqueue(self, call, send_next):
            if call.args == (2,):
                raise PermissionError("not 2")
            return await send_next(call)

    with SyncBroker("memory://", middleware=MiddlewareChain(Deny())) as broker, Session(engine) as session:
        later = broker.on_session_commit(session)
        later.enqueue_many([mail.call(1), mail.call(2), mail.call(3)])
        with pytest.raises(PermissionError):
            session.commit()
        assert sent(broker) == [1, 3]


def test_after_the_commit_there_is_nothing_to_wait_for(broker, engine):
    """In a listener of `after_commit`: it says what to write, and harms no session."""
    with Session(engine) as session:
        errors = []

        def late(session):
            with pytest.raises(ConfigurationError, match=r"broker\.enqueue") as info:
                broker.on_session_commit(session).enqueue(mail, 1)
            errors.append(info.value)
            broker.enqueue(mail, 2)

        event.listen(session, "after_commit", late)
        for order in (1, 2):
            insert(session, order)
            session.commit()
    assert (len(errors), sent(broker)) == (2, [2, 2])


def test_what_cannot_be_sent_is_an_error_at_once(broker, engine):
    """Before the commit, and nothing is registered; so is what is no session, and a running event loop."""
    with Session(engine) as session:
        later = broker.on_session_commit(session)
        with pytest.raises(ArgumentsError):
            later.enqueue(mail, "no number")
        with pytest.raises(ArgumentsError):
            later.enqueue_many([mail.call(1), mail.call("no number")])
        later.enqueue_many([])

        async def main() -> None:
            with pytest.raises(SyncCallError):
                later.enqueue(mail, 1)
            with pytest.raises(SyncCallError):
                broker.on_session_commit(session)

        anyio.run(main)
        session.commit()
    assert sent(broker) == []
    with pytest.raises(ConfigurationError, match="AsyncSession"):
        broker.on_session_commit(engine)


# --- Django ---------------------------------------------------------------------------------------


@pytest.fixture
def transaction():
    """Django with a database in memory."""
    import django
    from django.conf import settings

    if not settings.configured:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(DATABASES={"default": database, "other": database}, LOGGING_CONFIG=None)
        django.setup()
    from django.db import connections, transaction

    yield transaction
    connections.close_all()


def test_django_sends_after_the_commit(broker, transaction):
    """Not after a rollback, of the whole or of a savepoint; at once where there is no transaction."""
    later = broker.on_django_commit()
    with transaction.atomic():
        later.enqueue(mail, 1)
        with failing(transaction.atomic()):
            later.enqueue(mail, 2)
        with transaction.atomic():
            later.enqueue_many([mail.call(3), mail.call(4)])
        assert sent(broker) == []
    assert sent(broker) == [1, 3, 4]
    with failing(transaction.atomic()):
        later.enqueue(mail, 5)
    later.enqueue(mail, 6)
    assert sent(broker) == [1, 3, 4, 6]


def test_django_s_databases_have_transactions_of_their_own(broker, transaction):
    """`using` names one."""
    with transaction.atomic(using="other"):
        broker.on_django_commit().enqueue(mail, 1)
        broker.on_django_commit(using="other").enqueue(mail, 2)
        assert sent(broker) == [1]
    assert sent(broker) == [1, 2]


def test_an_error_of_sending_is_raised_after_django_s_commit_or_logged(transaction, caplog):
    """What cannot be sent at all is an error before it."""
    with SyncBroker("unix:///nowhere") as broker:
        with pytest.raises(ArgumentsError), transaction.atomic():
            broker.on_django_commit().enqueue(mail, "no number")
        with pytest.raises(BrokerUnavailableError), transaction.atomic():
            broker.on_django_commit().enqueue(mail, 1)
        with caplog.at_level(logging.ERROR), transaction.atomic():
            broker.on_django_commit(robust=True).enqueue(mail, 1)
    assert "no connection to /nowhere" in caplog.text


def test_neither_is_imported_before_it_is_used():
    """A program has one of them, or none."""
    code = "import sys; from streamq import SyncBroker; SyncBroker('memory://').check; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    assert {"django", "sqlalchemy"} & set(loaded.split()) == set()
