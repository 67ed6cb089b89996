"""Which texts can name something (P13: names are exact)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.consumer.consumer_name import consumer_name, name_given
from streamq.errors import ConfigurationError, TaskNameError, UndecodableError
from streamq.wire.names import IS_PLAIN_ID, RULES, check_field, check_name, is_name, qualified

UNSEEN = [
    "\0", "\t", "\n", "\r", "\x1b", "\x1c", "\x7f", "\x85", "\x9b", "\xad", "\u061c", "\u180e", "\u200b",
    "\u200f", "\u2028", "\u2029", "\u202e", "\u2060", "\u2066", "\ufeff", "\ud800", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("kind", RULES)
def test_what_cannot_be_seen_is_refused_everywhere_in_a_name(kind):
    """Alone, at the beginning, inside, at the end: a line or a terminal could be forged with it."""
    for char in UNSEEN:
        for name in (char, f"{char}a", f"a{char}b", f"a{char}"):
            assert not is_name(kind, name), (kind, name)


@pytest.mark.parametrize("kind", RULES)
def test_names_have_an_end(kind):
    longest = RULES[kind].longest
    assert is_name(kind, "x" * longest)
    assert is_name(kind, "é" * longest)  # characters, not bytes
    assert not is_name(kind, "x" * (longest + 1))
    assert not is_name(kind, "")
    assert not is_name(kind, None)


@pytest.mark.parametrize("kind", RULES)
def test_only_keys_have_blanks_and_separators(kind):
    for name in ("a b", " ", "a|b"):
        assert is_name(kind, name) == (kind == "key")
    assert not is_name(kind, "a\u3000b")


def test_the_error_names_the_value_the_bound_and_where_it_came_from():
    with pytest.raises(
        ConfigurationError, match=r"dedup_key='x+\.\.\. of 100000 characters cannot be .*: give 1 to 500"
    ):
        check_name("key", "x" * 100_000, what="dedup_key")
    with pytest.raises(TaskNameError, match="task='a b' cannot be used: give 1 to 200 characters, no white space"):
        check_name("task", "a b", error=TaskNameError)
    with pytest.raises(UndecodableError, match=r"field 'id' is '.x1b', which is not 1 to 200 characters"):
        check_field("task_id", "\x1b", "id")


@given(st.text())
def test_what_is_certainly_an_id_is_one(text):
    """The quick check of the worker accepts nothing that the full one refuses."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        return
    assert not IS_PLAIN_ID(raw) or is_name("task_id", text)


names = st.text("ab|:", min_size=1, max_size=3)
owners = st.text("ab:", max_size=3)


@given(owners, names, owners, names)
def test_two_joined_names_are_the_same_only_if_their_parts_are(owner, key, other_owner, other_key):
    same = (owner, key) == (other_owner, other_key)
    assert (qualified(owner, key) == qualified(other_owner, other_key)) == same


class TestConsumers:
    def test_each_start_is_a_consumer_of_its_own(self):
        """Two workers of one name share no pending list, and one that comes back is another one."""
        first, second = consumer_name("mailer"), consumer_name("mailer")
        assert first != second
        assert name_given(first) == name_given(second) == "mailer"
        assert name_given("released") == "released"

    @pytest.mark.parametrize("name", ["", "a b", "a\nb", "\x1b[31m", "\0", "a|b", "x" * 101])
    def test_a_name_that_cannot_be_used_is_refused(self, name):
        with pytest.raises(ConfigurationError, match="name="):
            consumer_name(name)

    @pytest.mark.parametrize("host", ["my host", "a\nb", "x" * 300, "", "\ud800", "a|b"])
    def test_an_odd_host_name_makes_a_usable_one(self, host, monkeypatch):
        monkeypatch.setattr("socket.gethostname", lambda: host)
        name = consumer_name()
        assert is_name("consumer", name)
        assert name != "released"
